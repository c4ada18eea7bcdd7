"""What goes wrong in files and code of strangers, in one sentence that names the cause."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from config import UsageError
from data import default_model, memory, model_files
from data.sources import Source

OURS = Path(__file__).resolve().parent.parent

log = logging.getLogger(__name__)


@contextmanager
def strangers_code(refusal: Callable[[Exception], UsageError]) -> Iterator[None]:
    """Turn what the code of a library raises for a model's own files and settings into a sentence:
    these may be wrong in any way, and it raises anything. What is raised in a file of ours is a
    fault of ours, and lack of memory is nobody's: both pass as they are."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if memory.is_lack(error) or _raised_in_ours(error):
            raise
        log.debug("a model's own fault", exc_info=True)
        raise refusal(error) from error


def _raised_in_ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = Path(frame.f_code.co_filename)
    return file.is_relative_to(OURS) and "site-packages" not in file.parts


def said(error: BaseException) -> str:
    """Its type and what it says, on one line and not too long."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__


def of_loading(name: str, source: Source, of_hub: str) -> Callable[[Exception], UsageError]:
    """What to say of a model that transformers cannot load. of_hub: why the hub gave none of it,
    where that was asked."""

    def refusal(error: Exception) -> UsageError:
        words = str(error)
        if "trust_remote_code" in words:
            return UsageError(
                f"`model` {name} needs Python code of its own to run",
                "pass `trust_remote_code` if you trust it",
            )
        if "Unrecognized configuration class" in words:
            return UsageError(
                f"`model` {name} is no causal language model", "it cannot continue a text"
            )
        if "ignore_mismatched_sizes" in words:
            return UsageError(
                f"`model` {name} has weights of other shapes than its config.json says",
                "the checkpoint does not fit it",
            )
        if of_hub and isinstance(error, OSError):
            return UsageError(
                f"`model` {name} was not found in the local cache, and the hub {of_hub}",
                f"give {default_model.NAME}, a hub id you have access to, a local folder, or a "
                ".gguf file",
            )
        reason = source.folder and model_files.what_is_wrong(source.folder, source.gguf)
        if reason:
            return UsageError(f"`model` {name} cannot be loaded ({reason})", "mend or replace it")
        return UsageError(
            f"`model` {name} cannot be loaded ({said(error)})",
            "its files do not fit each other, or this version of transformers",
        )

    return refusal


def refuse_incomplete(name: str, report: Mapping[str, Iterable[object] | None]) -> None:
    """Weights that a checkpoint lacks are filled with random numbers: raise UsageError."""
    lacking = sorted(str(key) for key in report["missing_keys"] or ())
    lacking += sorted(str(entry) for entry in report["mismatched_keys"] or ())
    if lacking:
        raise UsageError(
            f"`model` {name} lacks {len(lacking)} weights or has them in the wrong shape, "
            f"{lacking[0]} among them",
            "the checkpoint does not fit its config.json",
        )
