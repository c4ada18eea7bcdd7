"""The door to caches in files: save one, or load what was saved, by this toolkit or another."""

from config import UsageError, user_path
from data import layout_files, plain_reading
from data.plain_files import save
from data.saved_layers import SavedCache

__all__ = ["SavedCache", "load", "save"]


def load(path: str, layout: str | None = None) -> SavedCache:
    """The cache that a file of `save` holds or, by a `layout`, one that another program has left
    (see data/layouts.py). Raises UsageError for what is damaged, foreign or not there."""
    place = user_path(path, "`load_cache`")
    if layout is not None:
        return layout_files.read(place, layout)
    if place.is_dir():
        raise UsageError(
            f"`load_cache` {place} is a folder", "give a file, or say its `cache_layout`"
        )
    return plain_reading.read(place)
