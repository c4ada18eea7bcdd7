"""Calibrations of `coded`, kept in the user's cache folder and learned on first use."""

import hashlib
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import config
from compression import sealed
from compression.base import Calibration
from compression.coded import calibration, coefficients, method, rans, token_weights, transform
from config import UsageError
from data import sensitivity
from data.cache import KINDS
from data.models import LoadedModel
from data.own_cache import OwnCache
from data.texts import Sample, reference_samples

FORMAT = "calibration of coded 3"
# Samples of the offline corpus before this one are left for scoring: what is calibrated on must
# not be scored, and runs that fall back to this corpus score its first samples.
FIRST_SAMPLE = 8
TELLING = 60  # characters from which two equal paragraphs are no chance
MODULES = (calibration, coefficients, method, transform, rans, sensitivity, token_weights)

log = logging.getLogger(__name__)


@cache
def calibration_text() -> str:
    """What is learned from, whatever the scored texts are: the later samples of the offline corpus
    without the paragraphs that the first ones have too, for some topics contain others."""
    samples = reference_samples()
    held_out = {p for sample in samples[:FIRST_SAMPLE] for p in paragraphs(sample.text)}
    later = (p for sample in samples[FIRST_SAMPLE:] for p in paragraphs(sample.text))
    return "\n\n".join(p for p in dict.fromkeys(later) if p not in held_out)


def paragraphs(text: str) -> list[str]:
    return [p.strip("\n") for p in text.split("\n\n") if p.strip()]


def leaked(scored: Iterable[Sample]) -> list[str]:
    """The names of those texts of which a paragraph is among those learned from."""
    learned = {p for p in paragraphs(calibration_text()) if len(p) >= TELLING}
    return [sample.name for sample in scored if learned & set(paragraphs(sample.text))]


def leak(scored: Iterable[Sample]) -> list[str]:
    """What to say where texts that are scored have a part in what was learned from, which is said
    at once; else nothing."""
    names = leaked(scored)
    if not names:
        return []
    said = (
        f"What methods are calibrated on has parts of {', '.join(names)}, so their figures there "
        f"are too good: score other texts, of the offline corpus those before #{FIRST_SAMPLE}."
    )
    log.warning("%s", said)
    return [said]


def calibration_of(loaded: LoadedModel, must_keep: bool = False) -> Calibration:
    """The kept calibration of a model, by this code on this text; a new one where there is none,
    or a damaged one.
    must_keep: raise UsageError where it cannot be kept, before the work where that shows."""
    file = _folder(loaded) / f"{_recipe()[:16]}.safetensors"
    try:
        return _fitting(loaded, _read(file, loaded.identity))
    except FileNotFoundError:
        log.warning("Calibrating %s: once per model, some minutes on two cores.", loaded.name)
    except (ValueError, OSError) as error:
        log.warning("The calibration %s cannot be used (%s): calibrating anew.", file, error)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _not_kept(error, must_keep)
    learned = _calibrated(loaded)
    header = {"format": FORMAT, "learned_from": learned.learned_from}
    header |= {"model": loaded.identity, "name": loaded.name}
    try:
        sealed.write(file, learned.tensors, header)
    except OSError as error:
        _not_kept(error, must_keep)
    return learned


def _read(file: Path, identity: str) -> Calibration:
    """Raises ValueError for a file that is damaged, of another version or of another model."""
    if not file.exists():
        raise FileNotFoundError(file)
    tensors, header = sealed.read(file)
    if header.get("format") != FORMAT:
        raise ValueError(f"it has format {header.get('format')}, not {FORMAT}")
    if header.get("model") != identity:
        raise ValueError("it is of another model")
    if not header.get("learned_from", "").isprintable():
        raise ValueError("it does not say what it was learned from")
    return Calibration(tensors, header.get("learned_from", ""))


def _fitting(loaded: LoadedModel, learned: Calibration) -> Calibration:
    """The same; raises ValueError where it is not what would be learned of this model."""
    widths = {
        (i, kind): heads * dim
        for i, (_, _, heads, _, *dims) in enumerate(OwnCache.of(loaded, n_tokens=1, token=0).sizes)
        for kind, dim in zip(KINDS, dims, strict=True)
    }
    transform.refuse_misfit(learned.tensors, widths)
    transform.read(learned)  # which inverts matrices, and is kept for who compresses
    return learned


def _not_kept(error: OSError, refuse: bool) -> None:
    if refuse:
        raise UsageError(
            f"The calibration cannot be kept ({error})",
            "name a folder with room that can be written in KV_CACHE_HOME",
        ) from None
    log.warning("The calibration is not kept: %s.", error)


def earlier_calibration(loaded: LoadedModel, identity: str) -> Calibration:
    """The calibration with which something was compressed, by its own identity."""
    for file in sorted(_folder(loaded).glob("*.safetensors")):
        try:
            learned = _read(file, loaded.identity)
            if learned.identity == identity:
                return _fitting(loaded, learned)
        except (ValueError, OSError):
            continue
    raise UsageError(
        f"The calibration of {loaded.name} with which this was compressed is not in "
        f"{_folder(loaded)}",
        "copy that folder from where it was made, since a calibration made anew is never the same "
        "to the last bit",
    )


def _folder(loaded: LoadedModel) -> Path:
    return config.cache_folder() / "calibrations" / loaded.identity[:32]


@cache
def _recipe() -> str:
    """A hash of all that a calibration follows from, beside the model."""
    digest = hashlib.sha256(calibration_text().encode())
    for module in MODULES:
        digest.update(Path(module.__file__ or "").read_bytes())
    return digest.hexdigest()


def _calibrated(loaded: LoadedModel) -> Calibration:
    chosen = sensitivity.windows(loaded, calibration_text(), sensitivity.CONTEXTS)
    source = reference_samples()[0].source
    longest = max(n_context for _, n_context in chosen)
    said = f"{len(chosen)} stretches of up to {longest} tokens from #{FIRST_SAMPLE} on of the "
    return calibration.calibrate(sensitivity.sensitivities(loaded, chosen), said + source)
