"""GGUF files, each converted once: to dequantise one takes 10 to 30 seconds and its weights twice,
every time. What it comes to is kept as a plain safetensors folder in the user's cache folder, under
the SHA-256 of the file, weights in bfloat16 where each of them is the same in it.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import config
from data.locks import only_run
from data.writing import unfinished, whole_or_nothing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

RECEIPT = "receipt.json"
FORMAT = 1  # of what is kept

log = logging.getLogger(__name__)


def folder_of(file: Path) -> Path:
    """Where a .gguf file is kept, or will be."""
    with file.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    return config.cache_folder() / "gguf" / f"{content}-{FORMAT}"


def kept(file: Path) -> Path | None:
    """The folder of a converted .gguf file, made on first use; None, with a word, where it cannot
    be kept. Raises whatever transformers raises of a file that it cannot read."""
    made = folder_of(file)
    if _is_whole(made):
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another run is converting {file.name}: waiting for it."
        with only_run(made.with_suffix(".lock"), waiting):
            if not _is_whole(made):  # another run made it meanwhile
                log.warning("Converting %s: once per file, kept in %s.", file.name, made.parent)
                _make(file, made)
    except OSError as error:
        if error.errno is None:  # of transformers, about the file
            raise
        log.warning("The converted %s is not kept (%s).", file.name, error.strerror)
        return None
    return made


def _make(file: Path, made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with unfinished(made) as _, whole_or_nothing(made) as part:
        AutoTokenizer.from_pretrained(**source).save_pretrained(part)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        save_plainly(read, part)
        (part / RECEIPT).write_text(json.dumps(_sizes(part), indent=1))


def _is_whole(made: Path) -> bool:
    """Whether every file is as long as its receipt says; a checksum of gigabytes would take longer
    than to load them."""
    try:
        return bool(json.loads((made / RECEIPT).read_text()) == _sizes(made))
    except (OSError, ValueError):
        return False


def _sizes(made: Path) -> dict[str, int]:
    files = sorted(file for file in made.iterdir() if file.name != RECEIPT)
    return {file.name: file.stat().st_size for file in files}


def save_plainly(read: "PreTrainedModel", made: Path) -> None:
    """Save a model that was dequantised. The one that was read refuses to be saved, so that a fresh
    one of the same settings takes its weights."""
    import torch

    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # the weights are plain floats from here on
    weights = {name: _in_fewest_bits(x) for name, x in read.state_dict().items()}
    with torch.device("meta"):
        fresh = type(read)(type(read.config)(**settings))
    fresh.load_state_dict(weights, assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(made)


def _in_fewest_bits(weights: "torch.Tensor") -> "torch.Tensor":
    """In bfloat16 where that loses nothing."""
    import torch

    short = weights.to(torch.bfloat16)
    return short if torch.equal(short.to(weights.dtype), weights) else weights
