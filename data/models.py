"""A name, hub id, folder or .gguf file in; a causal model out, or one sentence why not."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

import config
from config import UsageError
from data import downloads, gguf_models, hub, model_files, placement, refusals
from data.downloads import Listing
from data.loaded_model import LoadedModel
from data.model_classes import auto_class
from data.refusals import strangers_code
from data.sources import Arguments, Source, resolve
from data.texts import printable

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def pick_device(wanted: str) -> torch.device:
    """The device asked for, or the best there is; one that is missing is refused."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, is_there in available.items() if is_there))
    if not available[wanted]:
        names = ", ".join(name for name, is_there in available.items() if is_there)
        raise UsageError(f"`device` {wanted} is not available on this machine", f"it has {names}")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype | str:
    """`auto` is float32 on the CPU, where 16-bit arithmetic is slow, else the checkpoint's own."""
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def load(
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    prefill_chunk: int | None = None,
    cache_offload: str | None = None,
    trust_remote_code: bool | None = None,
) -> LoadedModel:
    """A causal model by name, hub id, folder or .gguf file, on a device, or a wrapper that shows
    images to one, which is given text alone; encoder-decoders and others are refused in a sentence.
    What is not given is as config.py says.

    device: auto, cpu, cuda or mps. dtype: auto (float32 on the cpu, elsewhere the checkpoint's),
    float32, bfloat16 or float16. device_map: "auto" spreads a model over all cards, then memory,
    then disk, and leaves no use for `device`. prefill_chunk: tokens that are read at a time.
    cache_offload: none, memory or disk.
    """
    name = config.DEFAULT_MODEL if model is None else model
    trust = config.TRUST_REMOTE_CODE if trust_remote_code is None else trust_remote_code
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spread = (device_map or config.DEVICE_MAP) is not None
    place = pick_device("auto" if spread else device or config.DEVICE)
    source = resolve(name, trust)
    listing = Listing()
    if source.folder is None:
        listing = downloads.fetch_settings(name)
    else:
        model_files.refuse_endless(source.folder)
    in_one_sentence = partial(strangers_code, refusals.of_loading(name, source, listing.refused))
    with hub.offline():
        with in_one_sentence():
            settings = AutoConfig.from_pretrained(**source.arguments)
        _refuse_settings(name, settings)
        if source.gguf is not None and source.folder is not None:
            with in_one_sentence():
                source = _converted(source, source.folder / source.gguf)
    downloads.fetch(name, listing.files, trust)
    with hub.offline(), in_one_sentence():
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        # Weights come from safetensors or GGUF: a pickle could run any code.
        safe = {} if source.gguf else {"use_safetensors": True}
        weights, report = auto_class(settings).from_pretrained(
            **source.arguments,
            **safe,
            dtype=pick_dtype(dtype or config.DTYPE, place),
            output_loading_info=True,
            **(placement.spread() if spread else {}),
        )
        refusals.refuse_incomplete(name, report)
    weights = weights.eval().requires_grad_(False)
    return LoadedModel(
        weights if spread else weights.to(place),
        tokenizer,
        printable(source.name),
        source.revision or downloads.revision(name),
        prefill_chunk or config.PREFILL_CHUNK,
        cache_offload or config.CACHE_OFFLOAD,
    )


def _converted(source: Source, file: Path) -> Source:
    """A .gguf file as the folder that it was converted into, under its own name; the file itself
    where that cannot be kept."""
    made = gguf_models.kept(file)
    if made is None:
        return source
    folder: Arguments = {"pretrained_model_name_or_path": str(made), "local_files_only": True}
    return replace(source, arguments=folder)


def _refuse_settings(name: str, settings: "PretrainedConfig") -> None:
    if settings.is_encoder_decoder or settings.get_text_config().is_encoder_decoder:
        raise UsageError(
            f"`model` {name} is an encoder-decoder ({settings.model_type})",
            "its cache belongs to two texts at once; give a decoder-only causal model",
        )
    model_files.refuse_absurd(name, settings.get_text_config().to_dict())
