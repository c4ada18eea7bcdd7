"""What a run says of itself: phases in seconds, peak memory, versions, model and text."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

import config

LIBRARIES = ("torch", "transformers", "numpy", "pandas", "matplotlib", "seaborn")
CONSTANTS = (  # of config.py that no flag shows
    "SPARSITY_THRESHOLD_PERCENTAGE",
    "IMPORTANCE_WEIGHTS",
    "SPARSE_DIM_SHARE",
    "DENSE_DIM_SHARE",
    "PATTERN_DIMS",
    "MIN_QUERIES",
)
PHASES = (
    "start",
    "text",
    "load",
    "prefill",
    "generation",
    "analysis",
    "calibration",
    "scoring",
    "drawing",
    "report",
)


class RunRecord:
    """Times the phases of one run and gives its manifest; shows a bar of the phases meanwhile."""

    def __init__(self, started: float) -> None:
        """started: `time.perf_counter()` when the command began, before its imports."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.seconds["start"] = time.perf_counter() - started
        self.device_peak_nbytes = 0  # the most that an accelerator has held, for who knows it
        self._bar = tqdm(
            total=len(PHASES) - 1,
            desc="start     ",
            bar_format="{desc} |{bar}| {elapsed}",
            leave=False,
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to a phase; one phase may have several parts."""
        self._bar.set_description_str(f"{name:10}")
        began = time.perf_counter()
        yield
        if self.seconds[name] == 0:
            self._bar.update()
        self.seconds[name] += time.perf_counter() - began

    def close(self) -> None:
        """Take the bar away, so that results can be printed."""
        self._bar.close()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def peak_nbytes(self) -> int:
        """The most memory that this process has held, or the accelerator where it holds more."""
        return max(peak_resident_nbytes(), self.device_peak_nbytes)

    def timing_line(self) -> str:
        parts = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items() if seconds]
        return f"Time: {', '.join(parts)}. Peak memory: {self.peak_nbytes / 2**20:.0f} MiB."

    def manifest(
        self,
        mode: str,
        settings: Mapping[str, Any],
        model: Mapping[str, str],
        texts: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Everything needed to tell what made the files of a run; times in seconds. model: what
        `LoadedModel.facts` says. texts: what `TextRead.facts` says of all that it rests on; the
        first of them is also `text`."""
        return {
            "mode": mode,
            "settings": {**settings, **{name: getattr(config, name) for name in CONSTANTS}},
            "model": dict(model),
            "text": dict(texts[0]),
            "texts": [dict(text) for text in texts],
            "tokens_read": sum(text["tokens_read"] for text in texts),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
            "timings_s": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "peak_memory_bytes": self.peak_nbytes,
        }


def peak_resident_nbytes() -> int:
    """The most memory that this process has held."""
    if sys.platform == "win32":
        import psutil  # there with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
