"""A name, hub id, folder or .gguf file in; a causal model out, or one sentence why not."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from config import RunConfig, UsageError
from data import default_model, hub
from data.sources import resolve

CONFIG_PATIENCE_S = 8.0  # seconds for the first file of a model on the hub

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, and what outputs call it."""

    model: torch.nn.Module
    tokenizer: Callable
    name: str
    revision: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def max_positions(self) -> int | None:
        """The longest text in tokens; None where the model sets no limit."""
        settings = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if getattr(settings, name, None):
                return getattr(settings, name)
        return None


@contextmanager
def _in_one_sentence(name: str):
    """Turn what transformers raises for a model it cannot read into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # a model's files may be wrong in any way
        log.debug("loading %s", name, exc_info=True)
        raise UsageError(_why_not(name, error)) from error


def _why_not(name: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "trust_remote_code" in said:
        return (
            f"--model {name} needs Python code of its own to run: "
            "pass --trust_remote_code if you trust it."
        )
    if "Unrecognized configuration class" in said:
        return f"--model {name} is no causal language model: it cannot continue a text."
    if isinstance(error, OSError) and not Path(name).expanduser().exists():
        where = (
            "on the hub" if hub.reachable() else "in the local cache, and the hub is out of reach"
        )
        return (
            f"--model {name} was not found {where}: give {default_model.NAME}, a hub id you have "
            "access to, a local folder, or a .gguf file."
        )
    return f"--model {name} cannot be loaded ({type(error).__name__}: {said[:200]})."


def _refuse_incomplete(name: str, report: dict) -> None:
    """Weights that a checkpoint lacks are filled with random numbers: raise UsageError."""
    lacking = sorted(str(key) for key in report["missing_keys"] or ())
    lacking += sorted(str(entry) for entry in report["mismatched_keys"] or ())
    if lacking:
        raise UsageError(
            f"--model {name} lacks {len(lacking)} weights or has them in the wrong shape, "
            f"{lacking[0]} among them: the checkpoint does not fit its config.json."
        )


def pick_device(wanted: str) -> torch.device:
    """The device asked for, or the best there is; one that is missing is refused."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if not there[wanted]:
        names = ", ".join(name for name, is_there in there.items() if is_there)
        raise UsageError(f"--device {wanted} is not available on this machine: it has {names}.")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype | str:
    """`auto` is float32 on the CPU, where 16-bit arithmetic is slow, else the checkpoint's own."""
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return getattr(torch, wanted)


def load(run: RunConfig) -> LoadedModel:
    """The model of a run, on its device; encoder-decoders and others are refused in a sentence."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = pick_device(run.device)
    source = resolve(run.model, run.trust_remote_code)
    with _in_one_sentence(run.model):
        read = partial(AutoConfig.from_pretrained, **source.arguments)
        waits = not source.arguments["local_files_only"]
        settings = hub.in_time(CONFIG_PATIENCE_S, read) if waits else read()
    if settings is None:
        raise UsageError(
            f"--model {run.model}: the hub did not answer in {CONFIG_PATIENCE_S:.0f} s; try again, "
            "or give a model that is on this machine."
        )
    if settings.is_encoder_decoder:
        raise UsageError(
            f"--model {run.model} is an encoder-decoder ({settings.model_type}): its cache belongs "
            "to two texts at once; give a decoder-only causal model."
        )
    with _in_one_sentence(run.model):
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        dtype = pick_dtype(run.dtype, device)
        # Weights come from safetensors or GGUF: a pickle could run any code.
        safe = {} if "gguf_file" in source.arguments else {"use_safetensors": True}
        model, report = AutoModelForCausalLM.from_pretrained(
            **source.arguments, **safe, dtype=dtype, output_loading_info=True
        )
        _refuse_incomplete(run.model, report)
    model = model.eval().requires_grad_(False).to(device)
    revision = source.revision or getattr(model.config, "_commit_hash", None) or "unknown"
    return LoadedModel(model, tokenizer, source.name, revision)
