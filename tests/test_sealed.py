"""A sealed file comes back as it was written, or not at all."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from compression import sealed

TENSORS = {
    "a": torch.tensor([[1.5, -0.0], [torch.nan, 65504]], dtype=torch.float16),
    "codes": torch.arange(5, dtype=torch.uint8),
    "none": torch.zeros(0, 3),
}
HEADER = {"format": "some 1", "said": 'of "tiny", é'}


@pytest.fixture
def file(tmp_path):
    sealed.write(tmp_path / "a.safetensors", TENSORS, HEADER)
    return tmp_path / "a.safetensors"


def test_what_is_written_comes_back_and_nothing_else_is_left(file):
    tensors, header = sealed.read(file)
    assert header == HEADER and tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert tensors[name].dtype == x.dtype and tensors[name].shape == x.shape
        assert tensors[name].numpy().tobytes() == x.numpy().tobytes()
    assert list(file.parent.iterdir()) == [file]


def test_a_change_of_any_byte_is_refused(file):
    content = file.read_bytes()
    for at, byte in enumerate(content):
        changed = bytes([byte ^ 1 << at % 8])
        file.write_bytes(content[:at] + changed + content[at + 1 :])
        with pytest.raises(ValueError):
            sealed.read(file)


def test_a_part_of_the_file_is_refused(file):
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError):
            sealed.read(file)


def test_tensors_and_words_of_two_files_do_not_make_a_third(file):
    tensors, header = sealed.read(file)
    sealed.write(file, tensors | {"a": tensors["a"] + 1}, header)
    others = sealed.read(file)[0]
    sealed.write(file, TENSORS, header)
    _, seal = _with_seal(file)
    save_file(others, file, metadata=header | seal)
    with pytest.raises(ValueError, match="checksum does not fit"):
        sealed.read(file)


def _with_seal(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        words = opened.metadata()
    return words, {sealed.CHECKSUM: words[sealed.CHECKSUM]}


@pytest.mark.parametrize(
    "shape", [[0, 2**63 - 1], [0, 2**63], [0, 2**64], [0, 2**62, 2**62], [10**10, 10**10], [-1]]
)
def test_sizes_that_no_tensor_can_have_are_refused(tmp_path, shape):
    words = json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(words)) + words)
    with pytest.raises(ValueError):
        sealed.read(tmp_path / "a")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="is no regular file"):
            sealed.read(file)


def test_a_file_without_a_seal_is_refused(tmp_path):
    for header in (None, HEADER):
        save_file(TENSORS, tmp_path / "a", metadata=header)
        with pytest.raises(ValueError, match="checksum does not fit"):
            sealed.read(tmp_path / "a")


def test_what_the_system_refuses_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError):
        sealed.write(tmp_path / "nowhere" / "a", TENSORS, HEADER)
    with pytest.raises(OSError):
        sealed.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a name of the seal itself"):
        sealed.write(tmp_path / "a", TENSORS, {sealed.CHECKSUM: "1"})
    assert not list(tmp_path.iterdir())
