"""Is the model hub there, and does it go on answering? Decided once per run and quickly.

The hub's own client retries an unreachable or failing hub for most of a minute, and waits for ever
on one that sends a byte now and then. Whatever goes online passes through here and has a deadline;
all else runs `offline` and works from local files.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import config

STALL_S = 5.0  # seconds in which a download brings at least ...
LEAST_BYTES = 2**16  # ... so much, or is given up
CHUNK_BYTES = 2**15  # that the client is to report, instead of 10 MB

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
    try:
        answers = in_time(patience, lambda: _answers(url, patience)) is True
    except Exception as error:  # of a server that speaks no HTTP, or an endpoint that is no address
        log.info("The hub: %s: %s", type(error).__name__, error)
        return False
    if answers:
        _keep_connections()
    return answers


@cache
def _keep_connections() -> None:
    """The hub's client closes its connections, those of all threads, when a question of one cannot
    connect: then a question given up long ago would end a download that goes well. From now on a
    connection is closed when nobody holds it any more, and clients are made as before."""

    def held(client: Any) -> Any:
        client.close = lambda: None
        return client

    try:
        from huggingface_hub.utils import _http

        make = _http._GLOBAL_CLIENT_FACTORY  # a person's own, where one was set
        with _http._CLIENT_LOCK:
            _http._GLOBAL_CLIENT_FACTORY = lambda: held(make())
            if _http._GLOBAL_CLIENT is not None:
                held(_http._GLOBAL_CLIENT)
    except (ImportError, AttributeError):  # names of its own that another version may not have
        log.info("The hub's client closes connections that other threads read from.")


@contextmanager
def offline() -> Iterator[None]:
    """While entered, the hub's client asks nothing, whoever calls it: by itself it would look for
    news before reading a file that is here."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def within(patience_s: float, ask: Callable[[], T]) -> T | None:
    """What `ask` gets from the hub; None where the hub is out of reach, fails, or takes longer,
    all in all."""
    began = time.monotonic()
    if not reachable():
        return None
    try:
        return in_time(began + patience_s - time.monotonic(), ask)
    except Exception as error:  # whatever the client raises, the answer is that there is none
        log.info("The hub: %s: %s", type(error).__name__, error)
        return None


class _Asked(threading.Thread, Generic[T]):
    """A question under way. A thread, since looking up a host name knows no time-out and may hang
    far longer; nobody waits for it when the run ends."""

    def __init__(self, ask: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self.ask = ask
        self.results: list[T] = []
        self.errors: list[Exception] = []
        self.start()

    def run(self) -> None:
        try:
            self.results.append(self.ask())
        except Exception as error:  # raised again in the caller's thread
            self.errors.append(error)

    def answer(self) -> T | None:
        """None so far; its errors are raised here."""
        if self.errors:
            raise self.errors[0]
        return self.results[0] if self.results else None


def in_time(patience_s: float, ask: Callable[[], T]) -> T | None:
    """The result of `ask`, or None when it takes longer; its errors are raised here."""
    asked = _Asked(ask)
    asked.join(max(0.0, patience_s))
    return asked.answer()


def while_it_moves(ask: Callable[[], T], arrived: Callable[[], int]) -> T | None:
    """The result of `ask` however long it takes, or None when `arrived`, bytes so far, grows by
    less than LEAST_BYTES in STALL_S; its errors are raised here."""
    asked = _Asked(ask)
    while True:
        before = arrived()
        asked.join(STALL_S)
        if not asked.is_alive() or arrived() - before < LEAST_BYTES:
            return asked.answer()
