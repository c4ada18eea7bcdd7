"""Is the model hub there? Decided once per run and quickly.

The hub's own client retries an unreachable or failing hub for most of a minute; everything that
goes online passes through here and works from local files when the answer is no.
"""

import logging
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import config

T = TypeVar("T")
log = logging.getLogger(__name__)


def _answers(url: str, patience_s: float) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=patience_s):
            return True
    except HTTPError as refusal:
        return refusal.code < 500 and refusal.code != 429  # it works, if only to refuse this
    except (URLError, OSError, ValueError):
        return False


@cache
def reachable() -> bool:
    """Whether the hub answers within HUB_PATIENCE_S; honours HF_HUB_OFFLINE and HF_ENDPOINT."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    patience = config.HUB_PATIENCE_S
    return in_time(patience, lambda: _answers(url, patience)) is True


def within(patience_s: float, ask: Callable[[], T]) -> T | None:
    """What `ask` gets from the hub; None where the hub is out of reach, fails, or takes longer."""
    if not reachable():
        return None
    try:
        return in_time(patience_s, ask)
    except Exception as error:  # whatever the client raises, the answer is that there is none
        log.info("The hub: %s: %s", type(error).__name__, error)
        return None


def in_time(patience_s: float, ask: Callable[[], T]) -> T | None:
    """The result of `ask`, or None when it takes longer; its errors are raised here.

    A thread, since looking up a host name knows no time-out and may hang far longer.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(ask())
        except Exception as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience_s)
    if errors:
        raise errors[0]
    return results[0] if results else None
