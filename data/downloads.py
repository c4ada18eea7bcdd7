"""The files of a model on the hub, brought into the local cache: first what says which model it is,
then the rest, each with a deadline. Loading reads from the cache alone."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import UsageError
from data import hub
from data.model_files import INDEX, WEIGHTS

ANSWER_S = 5.0  # seconds for the list of files and the first of them
SETTINGS = "config.json"
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")
CODE = ".py"
NOT_FOR_YOU = (401, 403, 404)  # status codes of the hub

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What the hub says of a model: the names of its files, or why it gives none."""

    files: tuple[str, ...] = ()
    refused: str = ""


def fetch_settings(name: str) -> Listing:
    """Bring the settings of a hub model. Where the hub gives none, the cache may have them."""

    def ask() -> Listing:
        from huggingface_hub import HfApi

        files = HfApi().model_info(name, timeout=ANSWER_S).siblings or ()
        _download(name, SETTINGS)
        return Listing(tuple(file.rfilename for file in files))

    if not hub.reachable():
        return Listing(refused="is out of reach")
    try:
        listing = hub.in_time(ANSWER_S, ask)
    except Exception as error:  # the client raises what its servers and sockets make it raise
        log.debug("the hub on %s", name, exc_info=True)
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in NOT_FOR_YOU:
            return Listing(refused="has none of this name that you have access to")
        return Listing(refused=f"fails ({type(error).__name__})")
    return listing or Listing(refused=f"did not answer in {ANSWER_S:.0f} s")


def fetch(name: str, files: Iterable[str], with_code: bool) -> None:
    """Bring the tokenizer and the weights. Raises UsageError where the hub stalls or fails."""
    endings = (*SMALL, CODE) if with_code else SMALL
    top = [file for file in files if "/" not in file]
    small = [file for file in top if file.endswith(endings)]
    for file in small:
        _watched(name, file)
    for file in _weights(name, top):
        _watched(name, file)


def revision(name: str) -> str:
    """The commit of what the cache holds of a hub model."""
    from huggingface_hub import try_to_load_from_cache

    settings = try_to_load_from_cache(name, SETTINGS)
    return Path(settings).parent.name if isinstance(settings, str) else "unknown"


def _weights(name: str, files: list[str]) -> list[str]:
    """Those in safetensors, whole or in the parts that the index names."""
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX not in files:
        return []  # loading says what there is instead
    index = Path(_download(name, INDEX, local=True))
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"`model` {name} has a damaged {INDEX} on the hub") from None


def _watched(name: str, file: str) -> None:
    """Bring one file for as long as it keeps coming."""
    arrived = [0]

    def count(n: int) -> None:
        arrived[0] += n

    try:
        path = hub.while_it_moves(lambda: _download(name, file, count), lambda: arrived[0])
    except Exception as error:  # the client raises what its servers and sockets make it raise
        log.debug("downloading %s of %s", file, name, exc_info=True)
        raise UsageError(
            f"The hub did not give {file} of `model` {name} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "try again, or give a model that is on this machine",
        ) from error
    if path is None:
        raise UsageError(
            f"The hub stopped sending {file} of `model` {name} (less than "
            f"{hub.LEAST_BYTES // 1024} KiB in {hub.STALL_S:.0f} s)",
            "try again, or give a model that is on this machine",
        )


def _download(
    name: str, file: str, count: Callable[[int], None] = lambda n: None, local: bool = False
) -> str:
    """Its path in the cache; `count` is told how many bytes have come."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Counted(tqdm):
        def update(self, n: float | None = 1) -> Any:
            count(int(n or 0))
            return super().update(n)

    constants.DOWNLOAD_CHUNK_SIZE = hub.CHUNK_BYTES
    return hf_hub_download(
        name, file, tqdm_class=Counted, etag_timeout=hub.STALL_S, local_files_only=local
    )
