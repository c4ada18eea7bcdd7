"""What a command is at, shown from its first moment to its end, and how long each phase took.

Each second belongs to one phase: to what the command itself does or waits for. Pictures are drawn
beside it by another process, so `drawing` is the writing of tables and what is waited for in the
end.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate

PHASES = (  # in the order in which they come
    "start",
    "text",
    "load",
    "calibration",
    "prefill",
    "analysis",
    "scoring",
    "generation",
    "drawing",
    "report",
)
TICK_S = 0.5


class Progress:
    """A context for one command."""

    def __init__(self, started: float) -> None:
        """started: `time.perf_counter()` when the command began, before its imports."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._now, self._since = PHASES[0], started
        self._outer: str | None = None  # the phase that is entered
        self._bar: _Bar | None = None

    def __enter__(self) -> "Progress":
        self._bar = _Bar()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close(full=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """For as long as it is entered. Afterwards that goes on which it was a part of, or where
        there is none, the same until another begins."""
        outer, self._outer = self._outer, name
        self._turn_to(name)
        if self._bar is None:  # of the next model
            self._bar = _Bar()
        self._bar.show(name, further=outer is None)
        try:
            yield
        finally:
            self._outer = outer
            self._turn_to(outer or name)

    def taken(self) -> dict[str, float]:
        """Seconds by phase since this was asked last; they sum to the time that has gone by."""
        self._turn_to(self._now)
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return {name: seconds for name, seconds in taken.items() if seconds}

    def finish(self) -> None:
        """All is done: the full bar stays, and what is printed now comes below it."""
        if self._bar is not None:
            self._bar.close(full=True)
        self._bar = None
        self._turn_to(PHASES[0])

    def _turn_to(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[self._now] += now - self._since
        self._now, self._since = name, now


class _Bar:
    """A bar that ticks: bringing in libraries takes seconds in which nobody else would move it."""

    def __init__(self) -> None:
        from tqdm import tqdm

        form = "{desc:11} |{bar:30}| {percentage:3.0f} % {elapsed}"
        self._bar = tqdm(total=len(PHASES), desc=PHASES[0], bar_format=form)
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        if not self._bar.disable:
            self._clock.start()

    def show(self, phase: str, further: bool) -> None:
        """further: whether it is a step of the command, and no part of one."""
        self._bar.set_description_str(phase, refresh=False)
        if further:
            self._bar.n = max(self._bar.n, PHASES.index(phase))
        self._bar.refresh()

    def close(self, full: bool) -> None:
        self._ended.set()
        if self._clock.ident is not None:
            self._clock.join()
        self._bar.leave = full
        if full:
            self._bar.n = len(PHASES)
            self._bar.set_description_str("done", refresh=False)
        self._bar.close()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_S):
            self._bar.refresh()


def rounded(seconds: Mapping[str, float], digits: int) -> dict[str, float]:
    """The same, so that they sum to the rounded sum: each from where the one before it ends."""
    ends = [round(end, digits) for end in accumulate(seconds.values())]
    starts = [0.0, *ends[:-1]]
    parts = [round(end - start, digits) for start, end in zip(starts, ends, strict=True)]
    return dict(zip(seconds, parts, strict=True))
