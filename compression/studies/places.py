"""Where a run finds its workers: in this process, or in a Ray cluster."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from compression.studies.work import Here, Phase, Work
from data import models


class Place(Protocol):
    def work(self, model: Mapping[str, Any], phase: Phase) -> AbstractContextManager[Work]:
        """Workers with a model, for as long as it is entered. model: arguments of models.load."""


class ThisProcess:
    """Which is the one worker."""

    @contextmanager
    def work(self, model: Mapping[str, Any], phase: Phase) -> Iterator[Work]:
        with phase("load"):
            loaded = models.load(**model)
        yield Here(loaded, phase)


def place(
    ray: str | None = None,
    ray_workers: int | None = None,
    ray_cpus: float = 1.0,
    ray_gpus: float = 0.0,
) -> AbstractContextManager[Place]:
    """A cluster where `ray` is given, see cluster.py, which brings Ray in; else this process."""
    if ray is None:
        return nullcontext(ThisProcess())
    from compression.studies.cluster import Cluster

    return Cluster(ray, ray_workers, ray_cpus, ray_gpus)
