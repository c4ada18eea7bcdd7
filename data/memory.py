"""Running out of memory: whether an error says so, and what would fit."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
SAFE = 0.8  # of what would fit by the numbers: not all that is needed was asked for yet


def is_lack(error: BaseException) -> bool:
    """Of Python, of numpy, of the system, or of torch, with a type of its own for cards alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


@contextmanager
def told(model: "torch.nn.Module", n_tokens: int) -> Iterator[None]:
    """Turns running out of memory in work on `n_tokens` tokens into a UsageError that says how many
    would fit: what the work had taken and wanted more of, over what there was for it."""
    try:
        yield
    except Exception as error:
        if not is_lack(error):
            raise
        raise _refusal(model, n_tokens, _asked_nbytes(str(error))) from error


def _refusal(model: "torch.nn.Module", n_tokens: int, asked: int) -> UsageError:
    first = next(model.parameters())
    used, free = _used_and_free(first.device)
    weights = sum(w.numel() * w.element_size() for w in model.parameters())
    share = (used + free - weights) / max(1, used + asked - weights)
    fitting = max(1, int(n_tokens * min(SAFE * share, 0.5)))
    dtype = str(first.dtype).removeprefix("torch.")
    halves = ", or `dtype` bfloat16, which halves weights and cache" if dtype == "float32" else ""
    more = f"{_gib(asked)} more were asked for, " if asked else ""
    return UsageError(
        f"Memory ran out at {n_tokens} tokens in {dtype} ({more}{_gib(free)} of "
        f"{first.device.type} memory are free)",
        f"about {fitting} would fit: lower `context_tokens` to that{halves}",
    )


def _asked_nbytes(said: str) -> int:
    """From torch's own words: "tried to allocate 123 bytes", "Tried to allocate 2.00 GiB"."""
    match = re.search(r"ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)?", said)
    return int(float(match[1]) * UNITS[match[2] or ""]) if match else 0


def _used_and_free(device: "torch.device") -> tuple[int, int]:
    """Bytes that this process holds, and those that it could still get."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_allocated(device), free
    import psutil  # there with accelerate

    return psutil.Process().memory_info().rss, psutil.virtual_memory().available


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
