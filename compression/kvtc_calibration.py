"""What `kvtc` learns of a model at hand, kept in the user's cache folder: on the same stretches of
the same texts as `coded`, so that neither has seen more of the world than the other."""

import logging
from pathlib import Path

from compression import sealed
from compression.base import Calibration
from compression.coded.calibration_files import folder_of, recipe
from compression.coded.learned_windows import learned_from, learned_windows
from compression.methods.kvtc_fit import fitted
from data.extraction import prefill
from data.loaded_model import LoadedModel

FORMAT = "calibration of kvtc 1"
MODULES = (
    "compression/coded/learned_windows.py",
    "data/sensitivity.py",
    "compression/methods/kvtc_fit.py",
    "compression/methods/kvtc_plan.py",
    "compression/methods/layer_groups.py",
)

log = logging.getLogger(__name__)


def kvtc_calibration_of(loaded: LoadedModel) -> Calibration:
    """The kept one of a model, by this code on these texts; a new one where there is none, or a
    damaged one. Raises UsageError for a model of which it is not known what rotates its keys."""
    file = folder_of(loaded.identity) / f"kvtc-{recipe(MODULES)[:16]}.safetensors"
    try:
        return _read(file, loaded.identity)
    except FileNotFoundError:
        log.warning("Learning the basis of kvtc of %s: once per model, some minutes.", loaded.name)
    except (ValueError, OSError) as error:
        log.warning("The calibration %s cannot be used (%s): learning anew.", file, error)
    learned = _learned(loaded)
    header = {"format": FORMAT, "learned_from": learned.learned_from, "model": loaded.identity}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(file, learned.tensors, header)
    except OSError as error:
        log.warning("The calibration is not kept: %s.", error)
    return learned


def _read(file: Path, identity: str) -> Calibration:
    if not file.exists():
        raise FileNotFoundError(file)
    tensors, header = sealed.read(file)
    if header.get("format") != FORMAT or header.get("model") != identity:
        raise ValueError("it is of another model or version")
    if not all(x.isfinite().all() for x in tensors.values()):
        raise ValueError("its numbers are not finite")
    return Calibration(tensors, header.get("learned_from", ""))


def _learned(loaded: LoadedModel) -> Calibration:
    chosen = learned_windows(loaded)
    caches = (prefill(loaded, ids[:n_context]).cache for ids, n_context in chosen)
    return fitted(caches, learned_from(chosen))
