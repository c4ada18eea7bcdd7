"""What results say of a saved cache where its model and its text are not at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.saved_cache import SavedCache
from data.texts import visible

UNKNOWN = "not known"


@dataclass(frozen=True)
class SavedText:
    """What is told of the text of a saved cache, as far as that is known."""

    file: str
    known: Mapping[str, str]
    tokens_read: int

    @property
    def number(self) -> str:
        return f"#{self.known.get('index', '?')}"

    @property
    def source(self) -> str:
        return self.known.get("source", UNKNOWN)

    @property
    def title(self) -> str:
        return self.known.get("title", UNKNOWN)

    @property
    def name(self) -> str:
        known = "text not known"
        if "source" in self.known:
            known = f"{self.source} {self.number}: {self.title}"
        return f"{known} · saved in {visible(self.file)}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"saved_in": self.file, **self.known, "tokens_read": self.tokens_read}


@dataclass(frozen=True)
class SavedModel:
    """What is told of the model that made a saved cache, which is not there."""

    facts: dict[str, str]
    device_peak_nbytes: int = 0

    @property
    def name(self) -> str:
        return self.facts.get("name") or "model not known"


def tokens(saved: SavedCache) -> list[str]:
    """Each token as text on one line; where that is not known as its id, or else its position."""
    if saved.words is not None:
        return [visible(word) for word in saved.words]
    ids = saved.cache.token_ids.tolist()
    return [f"id{token}" if token >= 0 else f"#{position}" for position, token in enumerate(ids)]
