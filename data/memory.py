"""Running out of memory: whether an error says so, and what would fit."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from config import UsageError

if TYPE_CHECKING:
    import torch

SAID = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
)  # by torch, in words
UNITS = {"": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SMALL_CHUNK = 256  # tokens, from which fewer at a time save next to nothing
SAFE = 0.8  # of what would fit by the numbers: not all that is needed was asked for yet


def is_lack(error: BaseException) -> bool:
    """Of Python, of numpy, of the system, or of torch, with a type of its own for cards alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


class Loaded(Protocol):
    """A model, and how it reads a text."""

    @property
    def model(self) -> "torch.nn.Module": ...

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> str: ...

    @property
    def prefill_chunk(self) -> int | None: ...

    @property
    def cache_offload(self) -> str: ...


@contextmanager
def told(loaded: Loaded, n_tokens: int) -> Iterator[None]:
    """Turns running out of memory in work on `n_tokens` tokens into a UsageError that says how many
    would fit: what the work had taken and wanted more of, over what there was for it; and what else
    takes less."""
    try:
        yield
    except Exception as error:
        if not is_lack(error):
            raise
        raise _refusal(loaded, n_tokens, _asked_nbytes(str(error))) from error


def _refusal(loaded: Loaded, n_tokens: int, asked: int) -> UsageError:
    device = loaded.device
    used, free = _used_and_free(device)
    here = [w for w in loaded.model.parameters() if w.device.type == device.type]
    weights = sum(w.numel() * w.element_size() for w in here)
    share = (used + free - weights) / max(1, used + asked - weights)
    fitting = max(1, int(n_tokens * min(SAFE * share, 0.5)))
    more = f"{_gib(asked)} more were asked for, " if asked else ""
    advice = [
        f"about {fitting} would fit: lower `context_tokens` to that",
        *_thrift(loaded, n_tokens),
    ]
    return UsageError(
        f"Memory ran out at {n_tokens} tokens in {loaded.dtype} ({more}{_gib(free)} of "
        f"{device.type} memory are free)",
        ", or ".join(advice),
    )


def _thrift(loaded: Loaded, n_tokens: int) -> Iterator[str]:
    """What else takes less memory, of what is not done yet."""
    if loaded.dtype == "float32":
        yield "`dtype` bfloat16, which halves weights and cache"
    chunk = min(loaded.prefill_chunk or n_tokens, n_tokens)
    if chunk > SMALL_CHUNK:
        yield f"`prefill_chunk` {max(SMALL_CHUNK, chunk // 4)}, for masks and hidden states"
    if loaded.cache_offload != "disk":
        yield "`cache_offload` disk, for the cache"
    if not getattr(loaded.model, "hf_device_map", None):
        yield "`device_map` auto, for the weights"


def _asked_nbytes(said: str) -> int:
    """From torch's own words: "tried to allocate 123 bytes", "Tried to allocate 2.00 GiB"."""
    match = re.search(r"ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)?", said)
    return int(float(match[1]) * UNITS[match[2] or ""]) if match else 0


def _used_and_free(device: "torch.device") -> tuple[int, int]:
    """Bytes that this process holds, and those that it could still get."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        return used, max(0, torch.mps.recommended_max_memory() - used)
    import psutil  # there with accelerate

    return psutil.Process().memory_info().rss, psutil.virtual_memory().available


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
