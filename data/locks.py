"""One run at a time, and which runs are alive: locks that the system takes back from a process
however it ends, a kill and a power cut included."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE_S = 1.0  # what takes longer to wait for is told
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}

log = logging.getLogger(__name__)


def is_of_a_disk_without_locks(error: OSError) -> bool:
    """Some network folders cannot be locked at all."""
    return error.errno in NO_LOCKS


def taken(lock_file: Path, wait_s: float = 0.0) -> FileLock | None:
    """The lock of this file, ours until it is released or this process ends; None where another
    has it all the time. Raises OSError where it cannot be made."""
    # Without locks filelock would go on with a file that is there or not, which outlives a kill.
    lock = FileLock(lock_file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        return None
    return lock


@contextmanager
def only_run(lock_file: Path, waiting: str) -> Iterator[None]:
    """Inside, no other process is inside with the same file. Waits for one that is, and says so,
    in the sentence `waiting`, where that takes a while."""
    try:
        lock = taken(lock_file, PATIENCE_S)
        if lock is None:
            log.warning("%s", waiting)
            lock = taken(lock_file, wait_s=-1)
    except OSError as error:
        if not is_of_a_disk_without_locks(error):
            raise
        # What a run has found is worth more than the lock, which guards against another one.
        log.warning("%s has no locks: let only one run write there at a time.", lock_file.parent)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            # While it is held: whoever waits sees that the file has gone, and makes a new one.
            with suppress(OSError):  # Windows removes it when it is released
                lock_file.unlink()
            lock.release()
