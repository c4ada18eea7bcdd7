"""Files and folders that are there whole or not at all. Knows neither torch nor transformers.

What is made first lies in a hidden folder beside its final name, on the same disk. The folder is
locked by the process that works there. One that is killed leaves it behind unlocked, and the next
that makes something beside it clears it away.
"""

import atexit
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from data import locks

LOCK = ".lock"
_stages: set[tuple[int, Path]] = set()  # hidden folders that are there, by the process they are of
UNFINISHED = re.compile(r"\.unfinished-.+\.[0-9a-f]{12}", re.DOTALL)


class HalfReplacedError(OSError):
    """Files could neither all be replaced nor all be put back."""


@contextmanager
def unfinished(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final` to work in, which is removed in the end."""
    _clear_away(final.parent)
    with ExitStack() as undo:
        yield _own_stage(final, undo)


@atexit.register
def _clear_own() -> None:
    """What a signal has kept from being removed, one that came between any two steps."""
    for process, stage in _stages:
        if process == os.getpid():
            shutil.rmtree(stage, ignore_errors=True)


def _own_stage(final: Path, undo: ExitStack) -> Path:
    """A new hidden folder, with its lock where the disk has locks."""
    while True:
        stage = final.with_name(f".unfinished-{final.name}.{uuid4().hex[:12]}")
        # First of all, since a signal may come at any moment
        _stages.add((os.getpid(), stage))
        undo.callback(_stages.discard, (os.getpid(), stage))
        undo.callback(shutil.rmtree, stage, ignore_errors=True)
        stage.mkdir()
        try:
            lock = locks.taken(stage / LOCK)
        except (FileNotFoundError, FileExistsError):
            continue  # as below, and it is removed already, or just now while its lock was made
        except OSError as error:
            if locks.is_of_a_disk_without_locks(error):
                return stage
            raise
        if lock is not None:
            undo.callback(lock.release)
            return stage
        # Another looked after it was made and before it was locked, and takes it for a dead one's.


def _clear_away(folder: Path) -> None:
    """Remove the hidden folders of processes that have ended."""
    with suppress(OSError):  # one that may be written into, but not looked into
        for name in filter(UNFINISHED.fullmatch, os.listdir(folder)):  # noqa: PTH208 (often many)
            _remove_if_left(folder / name)


def _remove_if_left(stage: Path) -> None:
    if stage.is_symlink() or not stage.is_dir():
        return
    with suppress(OSError):  # of another user, or on a disk where who is alive cannot be told
        lock = locks.taken(stage / LOCK)
        if lock is not None:
            shutil.rmtree(stage, ignore_errors=True)
            lock.release()
            # Windows has kept what is locked. Only an empty one: another may have just made it.
            stage.rmdir()


@contextmanager
def whole_or_nothing(final: Path) -> Iterator[Path]:
    """A path to make a file or folder at. It takes the name `final` when the block ends without an
    error, and replaces what had that name before; a link there stays and is followed.

    Of two processes that do so at a time one succeeds, and with folders the other may fail."""
    final = final.resolve()
    with unfinished(final) as stage, ExitStack() as undo:
        part = stage / final.name
        yield part
        if part.is_file():
            _open_to_the_usual_readers(part)
        if part.is_dir() and final.is_dir():  # it can only take the place of an empty one
            _move(final, stage / ".earlier", undo)
        part.replace(final)
        undo.pop_all()


def _open_to_the_usual_readers(file: Path) -> None:
    """Some libraries make files that only their owner may read, whatever the user has chosen."""
    usual = file.with_name(".usual")
    usual.touch()
    mode = usual.stat().st_mode
    if file.stat().st_mode != mode:
        file.chmod(mode)


def replace_all(made: Path, final: Path, files: Sequence[str]) -> None:
    """Move files from one folder to the same names in another, all or none. The last one tells of
    the others, so an earlier one of its name goes first and it comes last.

    Raises OSError where they cannot be moved, with everything as it was before, or
    HalfReplacedError where that cannot be said."""
    try:
        _replace_all(made, final, files)
    except HalfReplacedError:
        with suppress(OSError):
            (final / files[-1]).unlink()  # what it tells is true of some others only
        raise


def _replace_all(made: Path, final: Path, files: Sequence[str]) -> None:
    earlier = made / ".earlier"
    *others, last = files
    with ExitStack() as undo:
        for file in files:
            (earlier / file).parent.mkdir(parents=True, exist_ok=True)
            _make_folder((final / file).parent, undo)
            if (final / file).is_dir():
                raise IsADirectoryError(0, f"{file} is a folder there")
        for file in (last, *others):
            if os.path.lexists(final / file):
                _move(final / file, earlier / file, undo)
            if file != last:
                _move(made / file, final / file, undo)
        _move(made / last, final / last, undo)
        undo.pop_all()


def _make_folder(folder: Path, undo: ExitStack) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        undo.callback(_remove_if_empty, folder)


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    undo.callback(_move_back, target, source)  # first of all, since a signal may come at any moment
    source.replace(target)


def _move_back(target: Path, source: Path) -> None:
    if os.path.lexists(source):  # it had not been moved
        return
    try:
        target.replace(source)
    except OSError as error:
        raise HalfReplacedError(error.errno, error.strerror) from error


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
