"""Faults that no person caused, and streams and signals that end a command."""

import errno
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.hostile.case import USUAL, Case, early, late

SCRIPT = "compression/run_tucker_analysis.py"
# Mode -> what it calls when all is loaded.
WORK = {
    "analyze": "compression.studies.analyze.Analysis.carry_out",
    "analyze_generation": "compression.studies.analyze.Analysis.carry_out",
    "calibrate": "compression.coded.kept_calibrations.calibration_of",
    "store": "compression.prompts.save",
    "list_samples": "visualization.terminal.listing.listing",
}
STUDY = "compression.studies.run.carry_out"
FAULTS = {
    "a RuntimeError": RuntimeError("boom"),
    "a KeyError": KeyError("boom"),
    "a ValueError of many lines": ValueError("boom\n\x1b[31mand more\n"),
    "a RecursionError": RecursionError("boom"),
    "an AssertionError": AssertionError("boom"),
    "no words": RuntimeError(),
}
MEMORY = {
    "a device out of memory": torch.OutOfMemoryError("CUDA out of memory"),
    "out of memory": MemoryError(),
    "an allocator out of memory": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


def _raises(folder: Path, patch: pytest.MonkeyPatch, error: Exception, where: str) -> None:
    def fails(*_: object, **given: object) -> None:
        raise error

    patch.setattr(where, fails)


def _raised() -> Iterator[Case]:
    for mode in USUAL:
        flags = "--save_compressed new.kv" if mode == "store" else ""
        fails = partial(_raises, where=WORK.get(mode, STUDY))
        kinds = FAULTS if mode in ("analyze", "tucker") else {"a KeyError": FAULTS["a KeyError"]}
        for what, error in kinds.items():
            boom = ("boom",) if error.args else ()
            says, prepare = ("fault", "--debug", *boom), partial(fails, error=error)
            yield late(mode, flags, *says, what=what, code=1, prepare=prepare)
        kinds = MEMORY if mode in ("analyze", "compare", "store") else {}
        for what, error in kinds.items():
            prepare = partial(fails, error=error)
            yield late(mode, flags, "memory", what=what, code=(1, 2), prepare=prepare)
        lost = partial(fails, error=OSError(errno.EIO, "Input/output error"))
        yield late(mode, flags, "Input/output", what="an I/O error", code=(1, 2), prepare=lost)


def _streams() -> Iterator[Case]:
    listing = early("list_samples", "", "main.py").arguments
    for flags in (("--help",), ("--mode", "tucker", "--help"), tuple(listing)):
        full = ("No space left",)
        yield Case("", flags, full, redirection=">/dev/full")
        yield Case("", flags, (), redirection=">&-", code=0)
    refused = ("--energy", "2")
    yield Case("tucker", refused, ("--energy",), redirection=">&-")
    yield Case("tucker", refused, (), redirection="2>&-")
    yield Case("tucker", refused, (), redirection="2>/dev/full")
    yield Case("tucker", ("--output_dir", "a\udcff"), ("--output_dir",), redirection="</dev/null")


SCRIPTS = (
    Case("tucker", ("--energy", "2"), ("--energy",), script=SCRIPT),
    Case("tucker", ("--levels", "0.5"), ("--levels", "compress"), script=SCRIPT),
    Case("tucker", ("--mode", "compress"), ("--mode",), script=SCRIPT),
    Case("tucker", ("--sequence_length", "0"), ("--sequence_length is 0",), script=SCRIPT),
    Case("", ("--help",), ("No space left",), redirection=">/dev/full", script=SCRIPT),
)
SIGNALS = (
    Case("analyze", (), ("interrupted",), what="SIGTERM", sent=signal.SIGTERM, code=143),
    Case("analyze", (), ("interrupted",), what="Ctrl-C", sent=signal.SIGINT, code=130),
    Case("tucker", (), ("interrupted",), what="SIGTERM", sent=signal.SIGTERM, code=143,
         script=SCRIPT),
)  # fmt: skip
CASES = (*_raised(), *_streams(), *SCRIPTS, *SIGNALS)
