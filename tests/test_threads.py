"""Threads wait without spinning and keep to the quota, unless a person said otherwise."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from data import threads

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bare(monkeypatch):
    """An environment in which nothing was decided, on 8 CPUs, without torch."""
    for name in threads.WAITING + threads.COUNTS:
        monkeypatch.setenv(name, "")  # so that what is set in the test is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(threads, "available", lambda: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.delitem(sys.modules, "torch")
    return monkeypatch


def test_without_a_quota_only_the_waiting_changes(bare):
    threads.settle()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not any(name in os.environ for name in threads.COUNTS)


@pytest.mark.parametrize(("quota", "n_threads"), [(2.0, "2"), (3.9, "3"), (0.5, "1"), (8.0, None)])
def test_a_quota_below_the_cpus_limits_the_number(bare, quota, n_threads):
    bare.setattr(threads, "cpu_quota", lambda: quota)
    threads.settle()
    assert os.environ.get("OMP_NUM_THREADS") == n_threads


@pytest.mark.parametrize("name", threads.WAITING)
def test_a_persons_waiting_is_left_alone(bare, name):
    bare.setenv(name, "7")
    threads.settle()
    assert [os.environ.get(n) for n in threads.WAITING if n != name] == [None, None]
    assert os.environ[name] == "7"


@pytest.mark.parametrize("name", threads.COUNTS)
def test_a_persons_number_is_left_alone(bare, name):
    bare.setenv(name, "7")
    bare.setattr(threads, "cpu_quota", lambda: 1.0)
    threads.settle()
    assert [os.environ.get(n) for n in threads.COUNTS if n != name] == [None]
    assert os.environ[name] == "7"


@pytest.mark.parametrize(("now", "then"), [(8, [2]), (1, [1])])
def test_torch_that_is_there_already_is_given_fewer_threads_never_more(bare, now, then):
    given = []
    torch = types.SimpleNamespace(get_num_threads=lambda: now, set_num_threads=given.append)
    bare.setitem(sys.modules, "torch", torch)
    bare.setattr(threads, "cpu_quota", lambda: 2.0)
    threads.settle()
    assert given == then


def _files(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "groups", root / "fs"


V1 = "fs/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),  # another system
        ({"groups": "0::/\n"}, None),
        ({"groups": "0::/\n", "fs/cpu.max": "max 100000\n"}, None),
        ({"groups": "0::/\n", "fs/cpu.max": "150000 100000\n"}, 1.5),
        (  # the group above allows less
            {
                "groups": "0::/a/b:c\n",
                "fs/a/b:c/cpu.max": "400000 100000\n",
                "fs/a/cpu.max": "20000 10000\n",
            },
            2.0,
        ),
        ({"groups": "0::/outside/../x\n", "fs/cpu.max": "100000 100000\n"}, 1.0),
        (
            {
                "groups": "5:memory:/m\n4:cpu,cpuacct:/docker/f00\n",
                f"{V1}/cpu.cfs_quota_us": "300000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "groups": "4:cpu,cpuacct:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"groups": "nonsense\n1:2\n", "fs/cpu.max": "1\n"}, None),
    ],
)
def test_the_quota_is_the_smallest_of_the_groups_above(tmp_path, files, quota):
    assert threads.cpu_quota(*_files(tmp_path, files)) == quota


@pytest.mark.parametrize("package", ["data", "analysis"])
def test_any_import_from_a_package_settles_threads_before_torch(package):
    script = f"import os, sys, {package}; print(os.environ.get('OMP_WAIT_POLICY'), *sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k not in threads.WAITING + threads.COUNTS}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=bare, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    policy, *modules = done.stdout.split()
    assert policy == "PASSIVE"
    assert not {"torch", "numpy", "gzip", "zipfile"} & set(modules)
