"""Files and folders that are there whole or not at all. Knows neither torch nor transformers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def unfinished(final: Path) -> Iterator[Path]:
    """A hidden path beside `final`, on the same disk, to make a file or folder at; whatever is
    left there in the end is removed."""
    part = final.with_name(f".unfinished-{final.name}.{uuid4().hex[:12]}")
    try:
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def whole_or_nothing(final: Path) -> Iterator[Path]:
    """The same; what was made there takes the name `final` when the block ends without an error,
    and replaces what had that name before."""
    with unfinished(final) as part:
        yield part
        if part.is_dir() and final.exists():
            shutil.rmtree(final)  # a folder can only take the place of an empty one
        part.replace(final)
