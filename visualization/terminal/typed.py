"""From the flags of a run back to what would have to be typed for it."""

import shlex
from collections.abc import Mapping
from typing import Any

from visualization.terminal.flags import BY_NAME


def as_typed(mode: str, settings: Mapping[str, Any]) -> str:
    """The command of a run, of its settings as a manifest has them; of what is as it is by default
    nothing is typed."""
    words = ["python", "main.py", "--mode", mode]
    for name, value in settings.items():
        if name in BY_NAME and mode in BY_NAME[name].modes and _differs(name, value):
            words += _words(name, value, settings)
    return shlex.join(words)


def _differs(name: str, value: Any) -> bool:
    return value is not None and _listed(value) != _listed(BY_NAME[name].default_now())


def _words(name: str, value: Any, settings: Mapping[str, Any]) -> list[str]:
    if name == "context_tokens" and settings.get("sequence_length") is not None:
        return []  # two names of one length, and only one may be typed
    if name == "model" and settings.get("models") is not None:
        return []  # one of several, each of which has results of its own
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", ",".join(map(_part, value))]
    return [f"--{name}", str(value)]


def _part(value: Any) -> str:
    """A KV head is a layer, or None for every one, and a head."""
    if isinstance(value, list | tuple):
        layer, head = value
        return str(head) if layer is None else f"{layer}:{head}"
    return str(value)


def _listed(value: Any) -> Any:
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value
