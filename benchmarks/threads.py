"""What the waiting of threads costs: prefill alone, and beside others that do the same.

    python -m benchmarks.threads [--processes 3] [--repeat 3] [--sequence_length 1024]

Prints a table: seconds of a prefill, alone and in several processes at the same time, with threads
that sleep while they wait (data/threads.py, what every command does) and with what torch does when
it is left alone. Alone they are timed in turn, so that both have the same neighbours; the minimum
of all repeats counts. At the same time, processes start each prefill together and the slowest one
counts; its fair share is the number of processes times the seconds alone, since one prefill alone
already uses every CPU.

Other work on the machine spoils the numbers: its load is printed, and was near 0 for those in
docs/scale.md.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = {"sleep": True, "spin": False}


class Prefills:
    """A process of its own, with its model in memory, that does a prefill when it is told to."""

    def __init__(self, length: int, sleeps: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.threads", "--child", str(length)]
        self._process = subprocess.Popen(
            [*command] if sleeps else [*command, "--spin"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("a child without pipes")
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self.seconds()  # it has loaded, and done one uncounted

    def start(self) -> None:
        self._orders.write("\n")
        self._orders.flush()

    def seconds(self) -> float:
        return float(self._answers.readline())

    def close(self) -> None:
        self._orders.close()
        self._process.wait()


def together(processes: list[Prefills]) -> list[float]:
    for process in processes:
        process.start()
    return [process.seconds() for process in processes]


def child(length: int, spins: bool) -> None:
    """Prefill once for each line of standard input, and write its seconds."""
    import data.threads

    if spins:  # as torch finds it where nobody has settled anything
        for name in data.threads.WAITING:
            os.environ.pop(name, None)
    from data import corpora, extraction, models

    loaded = models.load()
    ids = extraction.tokenise(loaded, corpora.reference_samples()[0], length)
    while True:
        began = time.perf_counter()
        extraction.prefill(loaded, ids)
        print(time.perf_counter() - began, flush=True)
        if not sys.stdin.readline():
            return


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--processes", type=int, default=3)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--sequence_length", type=int, default=1024)
    p.add_argument("--child", type=int, help=argparse.SUPPRESS)
    p.add_argument("--spin", action="store_true", help=argparse.SUPPRESS)
    flags = p.parse_args()
    if flags.child is not None:
        child(flags.child, flags.spin)
        return

    print(f"load before: {load()}; {os.cpu_count()} CPUs; {flags.sequence_length} tokens")
    processes = {
        name: [Prefills(flags.sequence_length, sleeps) for _ in range(flags.processes)]
        for name, sleeps in SETTINGS.items()
    }
    rounds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for _ in range(flags.repeat):
        for name in SETTINGS:
            rounds[name] += together(processes[name][:1])
    print(f"{'':6} {'alone':>7} {'together':>9} {'fair share':>11} {'of it':>6}")
    for name in SETTINGS:
        alone = min(rounds[name])
        slowest = min(max(together(processes[name])) for _ in range(flags.repeat))
        share = flags.processes * alone
        print(f"{name:6} {alone:7.2f} {slowest:9.2f} {share:11.2f} {slowest / share:6.2f}")
        for process in processes[name]:
            process.close()


if __name__ == "__main__":
    main()
