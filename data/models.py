"""A name, hub id, folder or .gguf file in; a causal model out, or one sentence why not."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import config
from config import UsageError
from data import default_model, hub
from data.sources import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG_PATIENCE_S = 8.0  # seconds for the first file of a model on the hub

# Settings that say where a copy of a model comes from or how it was loaded, not what it computes.
OF_A_COPY = {
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
RENEWED = ("inv_freq", "cos_cached", "sin_cached")

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    def __call__(
        self, text: str, *, add_special_tokens: bool = True
    ) -> Mapping[str, list[int]]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, and what outputs call it."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    name: str
    revision: str

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.dtype)

    @property
    def dtype(self) -> str:
        return str(self.torch_dtype).removeprefix("torch.")

    @property
    def settings(self) -> "PretrainedConfig":
        """The model's own settings, those of its language part where it has others."""
        return cast("PretrainedConfig", self.model.config).get_text_config()

    @property
    def max_positions(self) -> int | None:
        """The longest text in tokens; None where the model sets no limit."""
        settings = self.settings
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            limit: int | None = getattr(settings, name, None)
            if limit:
                return limit
        return None

    def refuse_beyond(self, n_tokens: int, asked: str, lower: str) -> None:
        """Raise UsageError where `n_tokens`, which were `asked` for, are more than there are
        positions; `lower` says what to lower."""
        limit = self.max_positions
        if limit is not None and n_tokens > limit:
            raise UsageError(
                f"{asked} are beyond the {limit} positions of {self.name}", f"lower {lower}"
            )

    @property
    def facts(self) -> dict[str, str]:
        """What outputs say of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "device": str(self.device),
        }

    @property
    def device_peak_nbytes(self) -> int:
        """The most memory that this process has held on an accelerator; 0 without one."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0

    @property
    def weight_nbytes(self) -> int:
        """Bytes of its weights in 16 bits."""
        return 2 * sum(weights.numel() for weights in self.model.parameters())

    @cached_property
    def identity(self) -> str:
        """A hash of what the model computes, wherever it was loaded from: its settings, the names,
        shapes and sums of its weights and buffers, and the dtype they run in."""
        digest = hashlib.sha256(self.dtype.encode())
        digest.update(self._settings().encode())
        for name, weights in sorted(self._lasting().items()):
            numbers = weights.detach().to("cpu", torch.float32).flatten()
            sums = (numbers.sum(dtype=torch.float64), numbers.norm(dtype=torch.float64))
            steps = numbers[:: max(1, len(numbers) // 64)].tolist()
            digest.update(repr((name, tuple(weights.shape), *map(float, sums), steps)).encode())
        return digest.hexdigest()

    def _settings(self) -> str:
        return json.dumps(
            {k: v for k, v in self.settings.to_dict().items() if k not in OF_A_COPY},
            sort_keys=True,
            default=str,
        )

    def _lasting(self) -> dict[str, torch.Tensor]:
        """Weights and buffers, those that no checkpoint holds too. Rotary modules renew some of
        theirs for a long text: what these follow from is among the settings."""
        lasting = {
            name: buffer
            for name, buffer in self.model.named_buffers()
            if not name.endswith(RENEWED) or name.endswith("original_inv_freq")
        }
        return self.model.state_dict() | lasting


@contextmanager
def _in_one_sentence(name: str) -> Iterator[None]:
    """Turn what transformers raises for a model it cannot read into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # a model's files may be wrong in any way
        log.debug("loading %s", name, exc_info=True)
        raise _refusal(name, error) from error


def _refusal(name: str, error: Exception) -> UsageError:
    said = " ".join(str(error).split())
    if "trust_remote_code" in said:
        return UsageError(
            f"`model` {name} needs Python code of its own to run",
            "pass `trust_remote_code` if you trust it",
        )
    if "Unrecognized configuration class" in said:
        return UsageError(
            f"`model` {name} is no causal language model", "it cannot continue a text"
        )
    if isinstance(error, OSError) and not Path(name).expanduser().exists():
        where = (
            "on the hub" if hub.reachable() else "in the local cache, and the hub is out of reach"
        )
        return UsageError(
            f"`model` {name} was not found {where}",
            f"give {default_model.NAME}, a hub id you have access to, a local folder, or a .gguf "
            "file",
        )
    return UsageError(f"`model` {name} cannot be loaded ({type(error).__name__}: {said[:200]})")


def _refuse_incomplete(name: str, report: Mapping[str, Iterable[object] | None]) -> None:
    """Weights that a checkpoint lacks are filled with random numbers: raise UsageError."""
    lacking = sorted(str(key) for key in report["missing_keys"] or ())
    lacking += sorted(str(entry) for entry in report["mismatched_keys"] or ())
    if lacking:
        raise UsageError(
            f"`model` {name} lacks {len(lacking)} weights or has them in the wrong shape, "
            f"{lacking[0]} among them",
            "the checkpoint does not fit its config.json",
        )


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
    trust_remote_code: bool | None = None,
) -> LoadedModel:
    """A causal model by name, hub id, folder or .gguf file, on a device; encoder-decoders and
    others are refused in a sentence. What is not given is as config.py says.

    device: auto, cpu, cuda or mps. dtype: auto (float32 on the cpu, elsewhere the checkpoint's),
    float32, bfloat16 or float16.
    """
    name = config.DEFAULT_MODEL if model is None else model
    trust = config.TRUST_REMOTE_CODE if trust_remote_code is None else trust_remote_code
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = pick_device(device or config.DEVICE)
    source = resolve(name, trust)
    with _in_one_sentence(name):
        read = partial(AutoConfig.from_pretrained, **source.arguments)
        waits = not source.arguments["local_files_only"]
        settings = hub.in_time(CONFIG_PATIENCE_S, read) if waits else read()
    if settings is None:
        raise UsageError(
            f"The hub did not answer for `model` {name} in {CONFIG_PATIENCE_S:.0f} s",
            "try again, or give a model that is on this machine",
        )
    if settings.is_encoder_decoder:
        raise UsageError(
            f"`model` {name} is an encoder-decoder ({settings.model_type})",
            "its cache belongs to two texts at once; give a decoder-only causal model",
        )
    with _in_one_sentence(name):
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments)
        # Weights come from safetensors or GGUF: a pickle could run any code.
        safe = {} if "gguf_file" in source.arguments else {"use_safetensors": True}
        weights, report = AutoModelForCausalLM.from_pretrained(
            **source.arguments,
            **safe,
            dtype=pick_dtype(dtype or config.DTYPE, place),
            output_loading_info=True,
        )
        _refuse_incomplete(name, report)
    weights = weights.eval().requires_grad_(False).to(place)
    revision = source.revision or getattr(weights.config, "_commit_hash", None) or "unknown"
    return LoadedModel(weights, tokenizer, source.name, revision)
