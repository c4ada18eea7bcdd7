"""What a run says of itself: phases in seconds, peak memory, versions, model and text."""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import config
from visualization.terminal.progress import rounded

LIBRARIES = ("torch", "transformers", "numpy", "pandas", "matplotlib", "seaborn")
CONSTANTS = (  # of config.py that no flag shows
    "SPARSITY_THRESHOLD_PERCENTAGE",
    "IMPORTANCE_WEIGHTS",
    "SPARSE_DIM_SHARE",
    "DENSE_DIM_SHARE",
    "PATTERN_DIMS",
    "MIN_QUERIES",
)


@dataclass(frozen=True)
class RunRecord:
    """What a run took. seconds: by phase, see `Progress.taken`. device_peak_nbytes: the most that
    an accelerator has held."""

    seconds: Mapping[str, float]
    device_peak_nbytes: int = 0

    def longer(self, seconds: Mapping[str, float]) -> "RunRecord":
        """The same run some seconds later, by phase as well."""
        names = dict.fromkeys((*self.seconds, *seconds))
        both = {name: self.seconds.get(name, 0) + seconds.get(name, 0) for name in names}
        return replace(self, seconds=both)

    @property
    def peak_nbytes(self) -> int:
        """The most memory that this process has held, or the accelerator where it holds more."""
        return max(peak_resident_nbytes(), self.device_peak_nbytes)

    def timing_line(self) -> str:
        """The parts as they are shown sum to the total that is shown."""
        parts = rounded(self.seconds, 1)
        named = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items() if seconds)
        total = f"{sum(parts.values()):.1f} s{f' ({named})' if named else ''}"
        return f"Time: {total}. Peak memory: {self.peak_nbytes / 2**20:.0f} MiB."

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
            "timings_s": rounded(self.seconds, 3),
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
