"""The calibration of a model at hand: kept in the user's cache folder, learned on first use."""

import logging

from compression import sealed
from compression.base import Calibration
from compression.coded import calibration, calibration_files
from compression.coded.calibration_files import FORMAT, file_of, folder_of
from compression.coded.chunks import ChunkCodec
from compression.coded.learned_windows import learned_from, learned_windows
from compression.coded.method import MIDDLE
from compression.methods.place_by_place import Place
from compression.shapes import LayerShape
from config import UsageError
from data import sensitivity
from data.cache import KINDS
from data.loaded_model import LoadedModel
from data.own_cache import OwnCache

# What a calibration takes at most, where that can be, of the weights in 16 bits; and its turns of
# the products that the weights take for each token, about one for each.
SHARE, SHARE_OF_WORK = 20, 25

log = logging.getLogger(__name__)


def calibration_of(loaded: LoadedModel, must_keep: bool = False) -> Calibration:
    """The kept calibration of a model, by this code on these texts; a new one where there is none,
    or a damaged one.
    must_keep: raise UsageError where it cannot be kept, before the work where that shows."""
    file = file_of(loaded.identity)
    try:
        return calibration_files.read(file, loaded.identity, _widths(loaded))
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


def chunk_codec(loaded: LoadedModel, step: float = MIDDLE) -> ChunkCodec:
    """What codes chunks of the caches of a model at hand, with its kept calibration."""
    cache = OwnCache.of(loaded, n_tokens=1, token=0).cache
    layers = tuple(LayerShape.of(layer) for layer in cache.layers)
    return ChunkCodec(layers, loaded.identity, calibration_of(loaded), step)


def _widths(loaded: LoadedModel) -> dict[Place, int]:
    """heads x dim of each place that the model caches."""
    return {
        (i, kind): heads * dim
        for i, (_, _, heads, _, *dims) in enumerate(OwnCache.of(loaded, n_tokens=1, token=0).sizes)
        for kind, dim in zip(KINDS, dims, strict=True)
    }


def _not_kept(error: OSError, refuse: bool) -> None:
    if refuse:
        raise UsageError(
            f"The calibration cannot be kept ({error})",
            "name a folder with room that can be written in KV_CACHE_HOME",
        ) from None
    log.warning("The calibration is not kept: %s.", error)


def earlier_calibration(loaded: LoadedModel, identity: str) -> Calibration:
    """The calibration with which something was compressed, by its own identity."""
    folder, widths = folder_of(loaded.identity), _widths(loaded)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            learned = calibration_files.read(file, loaded.identity, widths)
        except (ValueError, OSError):
            continue
        if learned.identity == identity:
            return learned
    raise UsageError(
        f"The calibration of {loaded.name} with which this was compressed is not in {folder}",
        "copy that folder from where it was made, since a calibration made anew is never the same "
        "to the last bit",
    )


def _calibrated(loaded: LoadedModel) -> Calibration:
    chosen = learned_windows(loaded)
    draws = sensitivity.sensitivities(loaded, chosen)
    room, work = loaded.weight_nbytes / SHARE, loaded.weight_nbytes / 2 / SHARE_OF_WORK
    return calibration.calibrate(draws, learned_from(chosen), room, work)
