"""How time and memory grow with the text and the layers: the tables of benchmarks/README.md.

    python -m benchmarks.scaling [--quick] [--folder DIR] [--parts tokens,layers,disk,coded,real]
        [--only statistics,similarity] [--longest 131072] [--repeat 1]

Prints markdown. Synthetic caches of 32 layers, 8 KV heads and 128 dimensions in bfloat16 lie in
files under --folder (16 GiB for 128k tokens, removed at the end) and are mapped; for `coded` a real
context of the default model is repeated with noise, since that model reads 8192 tokens. Each number
is of a process of its own, see measured.py; of several repeats of an analysis the fastest counts.

--quick: texts of up to 8192 tokens in 4 layers, to see that all of it runs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import mapped
from benchmarks.measured import ANALYSES
from benchmarks.threads import load
from data import threads

ROOT = Path(__file__).parent.parent
MIB, GIB = 2**20, 2**30
LONG = (8192, 32768, 131072)  # tokens that `coded` is given
FIRST_LINEAR = 8192  # tokens from which slopes are fitted: below, what is done once weighs more
Row = Sequence[object]


@dataclass(frozen=True)
class Plan:
    """What is measured. lengths: tokens of synthetic texts, rising; contexts: of real ones."""

    folder: Path
    shape: mapped.Shape
    lengths: tuple[int, ...]
    layers: tuple[int, ...]
    coded: tuple[int, ...]
    context: int
    contexts: tuple[int, ...]
    analyses: tuple[str, ...]
    repeat: int


def planned(folder: Path, flags: argparse.Namespace) -> Plan:
    longest = 8192 if flags.quick else flags.longest
    n_layers = 4 if flags.quick else 32
    return Plan(
        folder,
        mapped.Shape(n_layers, 8, longest, 128),
        (2048, 8192) if flags.quick else _doubled(1024, longest),
        (2, 4) if flags.quick else _doubled(1, n_layers),
        (2048, 4096) if flags.quick else tuple(n for n in LONG if n <= longest) or LONG[:1],
        512 if flags.quick else 2048,
        (512, 1024) if flags.quick else (1024, 2048, 4096, 8192),
        tuple(flags.only.split(",")) if flags.only else tuple(ANALYSES),
        flags.repeat,
    )


def _doubled(first: int, last: int) -> tuple[int, ...]:
    """first, twice that, ... up to `last`."""
    return tuple(first << k for k in range((last // first).bit_length()))


def child(measure: str, repeat: int = 1, **given: Any) -> Any:
    """What one process says, of several the fastest."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.measured",
        json.dumps({"measure": measure} | given),
    ]
    print(time.strftime("%H:%M:%S"), measure, given, file=sys.stderr, flush=True)
    said = [
        json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(repeat)
    ]
    return min(said, key=lambda each: each.get("seconds", 0))


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> str:
    """The exponent of time by size, and how far the times are from a straight line."""
    pairs = [(n, s) for n, s in zip(sizes, seconds, strict=True) if n >= FIRST_LINEAR]
    if len(pairs) < 2:
        pairs = list(zip(sizes, seconds, strict=True))
    n, s = np.array(pairs).T
    exponent = np.polyfit(np.log(n), np.log(s), 1)[0]
    # each length counts by its share of error, not by its seconds
    line = np.polyval(np.polyfit(n, s, 1, w=1 / s), n)
    return f"{exponent:.2f}, {np.abs(line / s - 1).max():.0%}"


def markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"


def short(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else str(n)


def by_tokens(plan: Plan) -> str:
    return _grown(plan, plan.lengths, "tokens", lambda n: {"tokens": n})


def by_layers(plan: Plan) -> str:
    tokens = min(FIRST_LINEAR, plan.shape.n_tokens)
    grown = _grown(plan, plan.layers, "layers", lambda n: {"tokens": tokens, "layers": n})
    return f"Of {tokens} tokens.\n\n{grown}"


def _grown(
    plan: Plan, sizes: Sequence[int], unit: str, given: Callable[[int], dict[str, int]]
) -> str:
    """Seconds, and below them MiB that no file backs, of every analysis at every size."""
    rows: list[Row] = []
    for case in plan.analyses:
        said = [
            child("analysis", plan.repeat, case=case, folder=str(plan.folder), **given(n))
            for n in sizes
        ]
        seconds = [each["seconds"] for each in said]
        fitted = slope(sizes, seconds) if len(sizes) > 1 else ""
        rows.append([f"{case}, s", *(f"{s:.2f}" for s in seconds), fitted])
        beyond = [round(each["beyond"] / MIB) for each in said]
        most = max(each["peak"] for each in said)
        rows.append(["beyond the cache, MiB", *beyond, f"{most / MIB:.0f} with python and torch"])
    names = [short(n) if unit == "tokens" else str(n) for n in sizes]
    return markdown([unit, *names, "slope, off the line; most"], rows)


def from_disk(plan: Plan) -> str:
    """Statistics of a whole file, beside reading it."""
    names = {
        "read": "reading the files once",
        "untold": "statistics",
        "told": "statistics, maxima told",
    }
    said = {
        case: child("from_disk", plan.repeat, case=case, folder=str(plan.folder)) for case in names
    }
    once = said["read"]["seconds"]
    rows = [
        [
            name,
            f"{said[case]['seconds']:.1f}",
            f"{said[case]['seconds'] / once:.2f}",
            round(said[case]["beyond"] / MIB),
        ]
        for case, name in names.items()
    ]
    return markdown(
        [f"{plan.shape.nbytes / GIB:.1f} GiB on disk", "seconds", "readings", "MiB beyond"], rows
    )


def coded(plan: Plan) -> str:
    rows: list[Row] = []
    seconds: dict[str, list[float]] = {"compress": [], "restore": []}
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        child("repeated", folder=folder, context=plan.context, tokens=max(plan.coded))
        for n in plan.coded:
            said = child("coded", folder=folder, tokens=n)
            row: list[object] = [short(n), f"{said['compress']['stored'] / MIB:.0f}"]
            for way, times in seconds.items():
                times.append(said[way]["seconds"])
                row += [f"{times[-1]:.1f}", round(said[way]["beyond"] / MIB)]
            rows.append(row)
    fitted = [slope(plan.coded, times) for times in seconds.values()]
    rows.append(["slope, off the line", "", fitted[0], "", fitted[1], ""])
    head = ["tokens", "stored, MiB", "compress, s", "MiB beyond", "restore, s", "MiB beyond"]
    context = f"A context of {plan.context} tokens, repeated with noise.\n\n"
    return context + markdown(head, rows)


def real(plan: Plan) -> str:
    rows = []
    for n in plan.contexts:
        said = child("real", tokens=n)
        looked = said["analysis"]
        rows.append(
            [
                short(n),
                f"{said['prefill']['seconds']:.1f}",
                f"{looked['seconds']:.2f}",
                round(looked["beyond"] / MIB),
            ]
        )
    return markdown(["tokens", "prefill, s", "analysis, s", "MiB beyond"], rows)


PARTS: dict[str, tuple[str, Callable[[Plan], str]]] = {
    "tokens": ("Against tokens", by_tokens),
    "layers": ("Against layers", by_layers),
    "disk": ("A file that the system has not in memory", from_disk),
    "coded": ("`coded`, in the shape of the default model", coded),
    "real": ("Real contexts of the default model", real),
}
DRAWN = {"tokens", "layers", "disk"}  # of which the synthetic cache is needed


def machine() -> str:
    memory = ""
    if Path("/proc/meminfo").exists():
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f", {kib / 2**20:.0f} GiB of memory"
    cpus = f"{os.cpu_count()} CPUs ({platform.processor() or platform.machine()}){memory}"
    return f"{time.strftime('%Y-%m-%d')}, {cpus}, no accelerator used; load before: {load()}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--quick", action="store_true", help="short texts in few layers")
    p.add_argument("--folder", default=None, help="where the caches are written")
    p.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    p.add_argument("--only", default=None, help=f"of {', '.join(ANALYSES)}, split by commas")
    p.add_argument("--longest", type=int, default=1 << 17, help="tokens, at most")
    p.add_argument("--repeat", type=int, default=1)
    flags = p.parse_args()
    threads.settle()  # by the environment: children wait as every command does
    os.environ["TQDM_DISABLE"] = "1"
    parts = flags.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        p.error(f"--parts takes {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    print(f"`python -m benchmarks.scaling {' '.join(sys.argv[1:])}`: {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        plan = planned(Path(folder), flags)
        if DRAWN & set(parts):
            mapped.write_drawn(plan.folder, plan.shape)
        for part in parts:
            title, table = PARTS[part]
            print(f"### {title}\n\n{table(plan)}", flush=True)


if __name__ == "__main__":
    main()
