"""Threads that leave room for the other work of a machine; runs before torch is loaded.

OpenMP reads its settings once, when torch brings it in. By default its threads wait for each other
by spinning, at the end of every matrix product. On a busy machine what they wait for is not
running, because they are: prefill then takes a multiple of its time, and slows the others as much.
Threads that sleep while they wait cost nothing that could be measured on a machine that is idle
(`python -m benchmarks.threads`). What a person has set in the environment stays as it is.
"""

import os
import sys
from pathlib import Path

# GNU's runtime, in torch for Linux, and those of LLVM and Intel, for macOS and Windows, know the
# first; the others are finer settings of the same, by which a person may have decided otherwise.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settle() -> None:
    """Passive waiting, and no more threads than the control group may run at a time.

    Libraries themselves count the CPUs that this process is bound to, and leave out the second
    thread of a core; of a quota they know nothing. Where torch is there already, as in a notebook
    that imported it first, only the number can still be set.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    quota = cpu_quota()
    if quota is None or quota >= available() or any(name in os.environ for name in COUNTS):
        return
    n_threads = max(1, int(quota))
    os.environ["OMP_NUM_THREADS"] = str(n_threads)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(min(n_threads, torch.get_num_threads()))


def available() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """CPUs' worth of time that this process's control group may use; None without a limit.

    The limit of any group above it holds as well. A container may see its own group at the root
    while `groups` names it from outside, so that the path below the root need not exist.
    """
    limits = [
        limit
        for controllers, path in _paths(groups)
        for folder in (path, *path.parents)
        if (limit := _limit(root, controllers, folder)) is not None
    ]
    return min(limits, default=None)


def _paths(groups: Path) -> list[tuple[str, Path]]:
    """(controllers, path) of the groups that may limit this process's CPU time; version 2 names no
    controllers."""
    try:
        lines = groups.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [
        (controllers, Path(path.lstrip("/")))
        for _, controllers, path in parts
        if controllers == "" or "cpu" in controllers.split(",")
    ]


def _limit(root: Path, controllers: str, folder: Path) -> float | None:
    """What one group's own files say: quota / period."""
    try:
        if controllers == "":
            quota, period = (root / folder / "cpu.max").read_text().split()
        else:
            group = root / controllers / folder
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        limit = int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return limit if limit > 0 else None
