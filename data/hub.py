"""Is the model hub there? Decided once per run and quickly.

The hub's own client retries an unreachable hub for most of a minute; everything that could go
online asks here first and works from local files when the answer is no.
"""

import os
import threading
from functools import cache
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import config


def _answers(url: str, patience_s: float) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=patience_s):
            return True
    except HTTPError:
        return True  # it answered, if only to refuse
    except (URLError, OSError, ValueError):
        return False


@cache
def reachable() -> bool:
    """Whether the hub answers within HUB_PATIENCE_S; honours HF_HUB_OFFLINE and HF_ENDPOINT."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer: list[bool] = []
    # A thread, since looking up a host name knows no time-out and may hang far longer.
    ask = threading.Thread(
        target=lambda: answer.append(_answers(url, config.HUB_PATIENCE_S)), daemon=True
    )
    ask.start()
    ask.join(config.HUB_PATIENCE_S)
    return bool(answer and answer[0])
