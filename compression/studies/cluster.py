"""The tasks of a run on the workers of a Ray cluster, each of which holds the model once.

What a worker or its whole machine takes with it is one task, which another does again. A run asks
for nothing else of the cluster: rows are kept by the process that started it, and what was finished
is not repeated, whichever way a run is started the next time.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression.studies.errand import Done, Failed, Refused, Runner
from compression.studies.work import Phase, T, Task, Work, bar
from config import UsageError
from data import signals

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_HERE = (".git", ".venv", "graphs", "__pycache__", ".*_cache")
PATIENCE_S, MOST_PORT = 5.0, 65535
TRIES = 3  # of one task, before it is the task that ends its workers
SENT = ("KV_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN")  # of the environment
STORE_NBYTES = 2**28  # of the shared memory that Ray takes on this machine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Of a machine, for one worker."""

    cpus: float = 1.0
    gpus: float = 0.0


class Cluster:
    """A context: connected to a cluster, or one on this machine for as long as it lasts."""

    def __init__(
        self,
        ray: str,
        ray_workers: int | None = None,
        ray_cpus: float = 1.0,
        ray_gpus: float = 0.0,
    ) -> None:
        """ray: `auto` to start one here, or the address of one that is there, such as
        10.0.0.1:6379 or ray://10.0.0.1:10001. ray_workers: how many hold a model at a time; as many
        as there is room for where not given. ray_cpus, ray_gpus: of each, fractions too."""
        self.address = ray
        self.n_workers = ray_workers
        self.share = Share(ray_cpus, ray_gpus)

    def __enter__(self) -> "Cluster":
        self._ray = _library()
        try:
            self._connect()
            room = self._room()
        except BaseException:
            self.__exit__()
            raise
        self.n_workers = min(self.n_workers or room, room)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _connect(self) -> None:
        sent = {name: os.environ[name] for name in SENT if name in os.environ}
        if self.address == "auto":
            here = {"PYTHONPATH": str(ROOT)}
            started: dict[str, Any] = {
                "address": "local",  # one of its own, whatever clusters there are
                "include_dashboard": False,
                "object_store_memory": STORE_NBYTES,
                "runtime_env": {"env_vars": {**sent, **here}},
            }
        else:
            _refuse_unreachable(self.address)
            code = {"working_dir": str(ROOT), "excludes": list(LEFT_HERE)}
            started = {
                "address": self.address,
                "runtime_env": {**code, "env_vars": sent},
            }
        try:
            with signals.kept():  # Ray would have the process abort
                self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **started)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(self.address, next(iter(str(error).splitlines()), "")) from None

    def _room(self) -> int:
        """How many workers fit; raises UsageError where none does."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(_fitting(node, self.share) for node in nodes)
        if not room:
            most = ", ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
            raise UsageError(
                f"No machine of the cluster has room for a worker of `ray_cpus` "
                f"{self.share.cpus:g} and `ray_gpus` {self.share.gpus:g} (they have {most})",
                "lower them",
            )
        return room

    @contextmanager
    def work(self, model: Mapping[str, Any], phase: Phase) -> Iterator["OnCluster"]:
        """Workers with a model, for as long as this is entered. model: arguments of models.load."""
        work = OnCluster(self._ray, self.n_workers or 1, self.share, model, phase)
        try:
            yield work
        finally:
            work.dismiss()


def _refuse_unreachable(address: str) -> None:
    """Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > MOST_PORT:
        raise _unreachable(address, "it is no HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()
    except OSError as error:
        raise _unreachable(address, error.strerror or str(error)) from None


def _unreachable(address: str, reason: str) -> UsageError:
    return UsageError(
        f"`ray` {address} cannot be reached ({reason})",
        "give auto to start a cluster on this machine, or the address of one that runs",
    )


def _library() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "`ray` was given, and Ray is not installed",
            "run `pip install -r requirements-cluster.txt`, or leave it out",
        ) from None
    return ray


def _fitting(resources: Mapping[str, float], share: Share) -> int:
    """How many workers have room on a machine."""
    rooms = [
        int(resources.get(name, 0) / each + 1e-9)
        for name, each in (("CPU", share.cpus), ("GPU", share.gpus))
        if each
    ]
    return min(rooms, default=1)


@dataclass
class _Hand:
    """One worker: its actor, and the place of what it did last."""

    actor: Any
    place: object = None


@dataclass
class _Errands:
    """Tasks to be given out: to a worker those of the text that it has read; else those of a text
    that nobody is at, before a part of what another is at."""

    tasks: Sequence[Task[Any]]
    waiting: dict[object, list[int]] = field(default_factory=dict)  # place -> tasks
    tries: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for i, task in enumerate(self.tasks):
            self.waiting.setdefault(task.place, []).append(i)

    def next(self, hand: _Hand, others: Sequence[_Hand]) -> int | None:
        """The next task for a worker; None where none is left."""
        if not self.waiting:
            return None
        if hand.place not in self.waiting:
            busy = {other.place for other in others}
            free = [place for place in self.waiting if place not in busy]
            longest = max(self.waiting, key=lambda place: len(self.waiting[place]))
            hand.place = free[0] if free else longest
        task = self.waiting[hand.place].pop(0)
        if not self.waiting[hand.place]:
            del self.waiting[hand.place]
        return task

    def again(self, i: int, lost: str) -> None:
        """A task whose worker was lost is the first to be given out again."""
        self.tries[i] += 1
        if self.tries[i] == TRIES:
            raise UsageError(
                f"A task took its worker with it {TRIES} times ({lost})",
                "where memory ran out, give fewer `ray_workers` or fewer tokens",
            )
        log.warning("A worker was lost (%s): what it was at is done again by another.", lost)
        waiting = self.waiting.pop(self.tasks[i].place, [])
        self.waiting = {self.tasks[i].place: [i, *waiting], **self.waiting}


class OnCluster(Work):
    """On workers that are there until they are dismissed; a lost one is replaced."""

    def __init__(
        self, ray: Any, n_workers: int, share: Share, model: Mapping[str, Any], phase: Phase
    ) -> None:
        self.phase = phase
        self._ray = ray
        self._n_workers = n_workers
        self._model = dict(model)
        # The process may hold what it was started with and the model, not what Ray thinks it needs.
        self._actor = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(Runner)
        self._hands: list[_Hand] = []  # those that are ready
        self._coming: dict[Any, _Hand] = {}  # by what tells that they are
        self._told: set[str] = set()

    def dismiss(self) -> None:
        for hand in (*self._hands, *self._coming.values()):
            self._ray.kill(hand.actor)
        self._hands, self._coming = [], {}

    def as_done(self, tasks: Sequence[Task[T]], what: str) -> Iterator[tuple[int, T]]:
        errands = _Errands(tasks)
        running: dict[Any, tuple[int, _Hand]] = {}
        with self.phase("scoring"), bar(len(tasks), what) as done:
            while errands.waiting or running:
                self._hire(min(self._n_workers, len(tasks)))
                self._give_out(errands, running)
                for ready in self._ray.wait([*running, *self._coming], num_returns=1)[0]:
                    if ready in self._coming:
                        self._welcome(ready)
                        continue
                    i, hand = running.pop(ready)
                    try:
                        result = self._ray.get(ready)
                    except self._ray.exceptions.RayActorError as error:
                        self._hands.remove(hand)
                        errands.again(i, _why(error))
                        continue
                    yield i, self._value(result)
                    done.update()

    def _hire(self, wanted: int) -> None:
        while len(self._hands) + len(self._coming) < wanted:
            hand = _Hand(self._actor.remote(self._model))
            self._coming[hand.actor.ready.remote()] = hand

    def _welcome(self, ready: Any) -> None:
        """A new worker; one that was lost before it came is hired anew."""
        hand = self._coming.pop(ready)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayActorError as error:
            log.warning("A worker was lost before its first task (%s).", _why(error))
            return
        self._hands.append(hand)

    def _give_out(self, errands: _Errands, running: dict[Any, tuple[int, _Hand]]) -> None:
        at_work = [hand for _, hand in running.values()]
        for hand in self._hands:
            if any(hand is other for other in at_work):
                continue
            i = errands.next(hand, at_work)
            if i is None:
                return
            running[hand.actor.done.remote(errands.tasks[i])] = i, hand
            at_work.append(hand)

    def _value(self, result: Done | Refused | Failed) -> Any:
        for notice in result.notices:
            if notice not in self._told:
                self._told.add(notice)
                log.warning("%s", notice)
        if isinstance(result, Refused):
            raise UsageError(result.reason, result.advice)
        if isinstance(result, Failed):
            raise RuntimeError(result.said)
        return result.value


def _why(error: Exception) -> str:
    """The first sentence of what Ray says of a lost worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line or "exit" in line or "node" in line.lower()]
    return (told or lines or [type(error).__name__])[0][:160].rstrip(".")
