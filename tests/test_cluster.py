"""Runs spread over a real local cluster of two nodes, of which a worker and a node are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import pytest

from compression.studies.cluster import TRIES, Cluster, OnCluster, Share, _Errands, _fitting, _Hand
from compression.studies.compare import CompareStudy
from compression.studies.run import carry_out
from compression.studies.work import Here, Task, untimed
from config import UsageError
from data import models
from data.corpora import reference_samples
from tests.commands import ROOT, of_mode, without_seconds

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

TIMES = ["compress_s", "restore_s"]
BANDWIDTHS = ["prefill_s", "beats_prefill_from", "beats_plain_below"]
ROUNDED = ["top", "top_full"]  # words with rounded numbers
ROUNDING = 1e-5
STUDY = CompareStudy(
    context_tokens=100, score_tokens=4, num_samples=4, methods=("none", "int8", "svd")
)
pytestmark = pytest.mark.xdist_group("cluster")  # one at a time: two cores for all


def rays() -> list[psutil.Process]:
    """Processes of Ray on this machine: its services, and workers."""
    named = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if words.startswith("ray::") or "/ray/core/src/ray/" in words:
            named.append(process)
    return named


def is_agent(process: psutil.Process) -> bool:
    return (process.info["cmdline"] or [""])[0].endswith("Agent")


def workers() -> list[psutil.Process]:
    return [p for p in rays() if (p.info["cmdline"] or [""])[0].startswith("ray::Runner")]


def until(holds: Callable[[], object], patience_s: float = 240) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < patience_s
        time.sleep(0.1)


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes of one CPU each, the second of which may be killed."""
    from ray.cluster_utils import Cluster as Nodes

    store = {"object_store_memory": 2**27, "num_cpus": 1}
    cluster = Nodes(initialize_head=True, head_node_args={**store, "include_dashboard": False})
    cluster.second = cluster.add_node(**store)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def here(tiny_model, tmp_path_factory):
    """What one process gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_CACHE_HOME", str(tmp_path_factory.mktemp("here")))
        loaded = models.load(str(tiny_model), device="cpu")
        return carry_out(STUDY, Here(loaded), reference_samples())


@pytest.fixture(scope="module")
def cluster(nodes):
    with Cluster(nodes.address) as connected:
        yield connected


@pytest.fixture
def work(cluster, tiny_model):
    """Two workers that are ready, one on each node."""
    with cluster.work({"model": str(tiny_model), "device": "cpu"}, untimed) as workers:
        workers._hire(2)
        while workers._coming:
            workers._welcome(ray.wait([*workers._coming])[0][0])
        yield workers


def spread(work):
    return carry_out(STUDY, work, reference_samples())


def assert_the_same(one, other) -> None:
    assert one.report.tables.keys() == other.report.tables.keys()
    for stem, table in one.report.tables.items():
        drop = [column for column in (*TIMES, *BANDWIDTHS, *ROUNDED) if column in table]
        there = other.report.tables[stem].drop(columns=drop)
        pd.testing.assert_frame_equal(table.drop(columns=drop), there, rtol=ROUNDING, atol=1e-7)
    assert without_seconds(one.report.lines) == without_seconds(other.report.lines)


def test_a_cluster_gives_the_tables_of_one_process_and_finished_rows_are_not_repeated(
    work, tiny_model, here
):
    spread_out = spread(work)
    assert_the_same(here, spread_out)
    assert len({hand.place for hand in work._hands}) == 2  # both have had a part of it
    again = spread(work)  # rows lie where the run was started; times are among them
    assert again.rows[TIMES].equals(spread_out.rows[TIMES])
    loaded = models.load(str(tiny_model), device="cpu")
    alone = carry_out(STUDY, Here(loaded), reference_samples())
    assert alone.rows[TIMES].equals(spread_out.rows[TIMES])  # whichever way it is started


def at_result(monkeypatch, n: int, do: Callable[[], object]) -> None:
    """Has something done as the n-th result comes in."""
    seen, genuine = [], OnCluster._value

    def counting(work, result):
        seen.append(result)
        if len(seen) == n:
            do()
        return genuine(work, result)

    monkeypatch.setattr(OnCluster, "_value", counting)


def test_a_worker_that_is_killed_costs_its_task_alone(work, here, monkeypatch, caplog):
    def kill():
        victim = workers()[0]
        victim.kill()
        until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)

    at_result(monkeypatch, 9, kill)
    assert_the_same(here, spread(work))
    lost = [said for said in caplog.messages if said.startswith("A worker was lost")]
    assert 1 <= len(lost) <= 2


def test_a_task_that_ends_its_workers_ends_the_run_in_a_sentence(work):
    with pytest.raises(UsageError, match=f"took its worker with it {TRIES} times"):
        work.one(Deadly())


def test_what_a_worker_fails_in_is_told_with_its_place(work):
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError: .*test_cluster.py, line \d+"):
        work.one(Faulty())


def test_what_a_worker_refuses_is_told_as_here(cluster, tmp_path):
    nowhere = {"model": str(tmp_path / "nowhere"), "device": "cpu"}
    with cluster.work(nowhere, untimed) as work, pytest.raises(UsageError, match="not exist: give"):
        assert work.model


def test_a_worker_that_no_machine_has_room_for_is_refused(cluster):
    asked = Cluster("auto", ray_cpus=64)
    asked._ray = ray
    with pytest.raises(UsageError, match=r"`ray_cpus` 64 and `ray_gpus` 0 \(they have 1 CPUs"):
        asked._room()


def test_a_node_that_is_killed_costs_its_task_alone(nodes, work, here, monkeypatch, caplog):
    def kill():
        nodes.remove_node(nodes.second, allow_graceful=False)
        # Its worker may live until that is seen, and do all that is left of so small a run.
        until(lambda: len([node for node in ray.nodes() if node["Alive"]]) == 1)

    at_result(monkeypatch, 9, kill)
    assert_the_same(here, spread(work))
    assert [said for said in caplog.messages if said.startswith("A worker was lost")]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "a:b", ":9"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address):
    began = time.monotonic()
    with pytest.raises(UsageError, match=f"`ray` {address} cannot be reached"):
        Cluster(address).__enter__()
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_processes(tiny_model, tmp_path, number):
    before = {process.pid for process in rays()}
    flags = ["--ray", "auto", "--ray_workers", "1", "--num_samples", "8", "--methods", "svd,int8"]
    flags += ["--context_tokens", "100", "--score_tokens", "20"]
    command = of_mode("compare", tiny_model, tmp_path / "out", *flags)
    with subprocess.Popen([sys.executable, "main.py", *command], cwd=ROOT) as run:
        until(lambda: {p.pid for p in workers()} - before or run.poll() is not None)
        run.send_signal(number)
        ends = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
        assert run.wait(60) == ends[number]
    agents = number == signal.SIGKILL  # which find out within minutes
    until(lambda: not {p.pid for p in rays() if not (agents and is_agent(p))} - before)
    assert not list((tmp_path / "out").glob("**/*.csv"))


def test_without_ray_it_is_said_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install -r requirements-cluster\.txt"):
        Cluster("auto").__enter__()


@dataclass(frozen=True)
class Of(Task[int]):
    """A task of a text."""

    text: str

    @property
    def place(self):
        return self.text

    def run(self, worker):
        return 0


@dataclass(frozen=True)
class Deadly(Task[int]):
    """As a process that the system ends where memory runs out."""

    def run(self, worker):
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


@dataclass(frozen=True)
class Faulty(Task[float]):
    def run(self, worker):
        return 1 / 0


def test_workers_stay_with_their_text_and_share_what_is_left():
    errands = _Errands([Of(text) for text in "aaaabb"])
    one, other = _Hand(None), _Hand(None)
    given = [errands.next(one, []), errands.next(other, [one])]
    assert given == [0, 4]  # a text each
    assert [errands.next(other, [one]) for _ in range(2)] == [5, 1]  # then a part of the other's
    errands.again(0, "gone")
    assert [errands.next(one, [other]) for _ in range(4)] == [0, 2, 3, None]
    for _ in range(TRIES - 2):
        errands.again(0, "gone")
    with pytest.raises(UsageError, match=f"{TRIES} times"):
        errands.again(0, "gone")


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits"), [(1, 0, 8), (0.5, 0, 16), (3, 0, 2), (1, 0.5, 4), (1, 3, 0)]
)
def test_as_many_workers_fit_as_a_machine_has_room_for(cpus, gpus, fits):
    assert _fitting({"CPU": 8.0, "GPU": 2.0}, Share(cpus, gpus)) == fits
