"""What `coded` has learned of a model, kept in the user's cache folder and learned on first use."""

import logging
from collections.abc import Iterable

import config
from compression.base import ModelSide
from compression.calibration import calibrate
from compression.side_files import load_model_side, save_model_side
from data.models import LoadedModel
from data.sensitivity import CONTEXTS, sensitivities, windows
from data.texts import Sample, reference_samples

# Samples of the offline corpus before this one are left for scoring: what is calibrated on must
# not be scored, and runs that fall back to this corpus score its first samples.
FIRST_SAMPLE = 8

log = logging.getLogger(__name__)


def calibration_samples() -> list[Sample]:
    """The texts that are learned from, whatever the scored ones are."""
    return [sample for sample in reference_samples() if sample.index >= FIRST_SAMPLE]


def learned(loaded: LoadedModel, identity: str) -> ModelSide:
    """The kept calibration of the model with these weights; a new one where there is none, or a
    damaged one, or one of another version."""
    file = config.cache_folder() / "calibrations" / f"{identity[:32]}.safetensors"
    try:
        side, metadata = load_model_side(file)
        if metadata.get("model") == identity:
            return side
        log.warning("%s is of another model: calibrating anew.", file)
    except FileNotFoundError:
        log.warning("Calibrating %s: once per model, some minutes on two cores.", loaded.name)
    except (ValueError, OSError) as error:
        log.warning("%s: calibrating anew.", error)
    chosen = windows(loaded, calibration_samples(), CONTEXTS)
    samples = calibration_samples()
    said = f"{len(chosen)} texts from {samples[0].source} #{samples[0].index} on"
    side = calibrate(sensitivities(loaded, chosen), said)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_model_side(side, file, {"model": identity, "name": loaded.name})
    except OSError as error:
        log.warning("The calibration is not kept: %s.", error)
    return side


def warn_of_leak(scored: Iterable[Sample]) -> None:
    """Say so where a text that is scored is one that was learned from."""
    known = {sample.sha256 for sample in calibration_samples()}
    leaked = [sample.name for sample in scored if sample.sha256 in known]
    if leaked:
        log.warning(
            "%s is among the texts that methods are calibrated on, so their figures are too good: "
            "score other texts, of the offline corpus those before #%d.",
            leaked[0],
            FIRST_SAMPLE,
        )
