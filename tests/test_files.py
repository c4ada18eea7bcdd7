"""Files of compressed caches that cannot be restored; the round trip is in test_compression.py."""

import pytest
import torch
from safetensors.torch import save_file

from compression import files, registry, sealed
from compression.file_parts import FORMAT
from compression.registry import METHODS, make
from config import UsageError
from tests import caches


def small_file(file, **facts):
    one = caches.cache(caches.layer(0, 1, 2, (2, 2)))
    files.save(make("none").compress(one), file, **facts)
    return file.read_bytes()


def test_a_file_of_another_format_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    sealed.write(file, {"a": torch.zeros(1)}, {"format": "compressed cache 3"})
    with pytest.raises(UsageError, match="has format compressed cache 3, not compressed cache 6"):
        files.load(file)
    save_file({"a": torch.zeros(1)}, file, metadata={"format": FORMAT})
    with pytest.raises(UsageError, match="is damaged, of an older version or no compressed cache"):
        files.load(file)


def test_a_damaged_file_is_refused_and_no_fact_of_it_is_believed(tmp_path):
    file = tmp_path / "cache.safetensors"
    content = small_file(file, model="of these weights")
    assert files.read(file).facts == {"model": "of these weights"}
    model = content.index(b"of these weights")
    for at in (0, 9, model, len(content) - 1):  # every byte: test_sealed.py
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        for read in (files.load, files.read):
            with pytest.raises(UsageError, match="is damaged"):
                read(file)
    file.write_bytes(content[:-1])
    with pytest.raises(UsageError, match="is damaged"):
        files.load(file)
    with pytest.raises(UsageError, match="cannot be read as a compressed cache"):
        files.load(tmp_path / "nothing")


def test_a_file_of_a_method_that_there_is_no_more_is_refused(tmp_path, monkeypatch):
    small_file(tmp_path / "a")
    others = {name: method for name, method in METHODS.items() if name != "none"}
    monkeypatch.setattr(registry, "METHODS", others)
    with pytest.raises(UsageError, match=r"cannot be restored \(The method none is not known\)"):
        files.load(tmp_path / "a")
