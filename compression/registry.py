"""Every method by name, and the one place where methods are made from names and settings.

To add one: its file and a line here; the contract tests run over it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from compression.base import Calibration, Compressor, Uncompressed
from compression.coded.chunked import CodedChunks
from compression.coded.fixed import CodedFixed
from compression.coded.method import Coded
from compression.methods import (
    dimensions,
    evictions,
    kvtc,
    low_rank,
    merging,
    pruning,
    quantisers,
    rotation_quantiser,
    tucker,
)
from compression.methods.composed import Composed
from config import UsageError
from data.headers import fitting, shown

_ALL: tuple[type[Compressor], ...] = (
    Uncompressed,
    Coded,
    CodedFixed,
    kvtc.KVTC,
    CodedChunks,
    quantisers.FloatQuantiser,
    quantisers.IntegerQuantiser,
    quantisers.KIVI,
    rotation_quantiser.RotationQuantiser,
    tucker.Tucker,
    tucker.QuantisedTucker,
    low_rank.SVD,
    low_rank.CrossLayerSVD,
    dimensions.MergedDims,
    dimensions.DroppedDims,
    dimensions.EmbeddingFactor,
    dimensions.PCA,
    dimensions.CalibratedPCA,
    *evictions.EVICTIONS,
    pruning.EvictedParts,
    pruning.ZeroedEntries,
    merging.MergedHeads,
    merging.MergedTokens,
    Composed,
)
METHODS = {method.name: method for method in _ALL}


def make(
    name: str, settings: Mapping[str, Any] | None = None, calibration: Calibration | None = None
) -> Compressor:
    """The method of a name with these settings, others at their defaults; one that is calibrated
    gets what was learned of the model. A setting that is a method itself, as the two of `composed`
    are, is a mapping of its `name` and settings.

    Raises UsageError for a method or setting that there is not, a setting of another type, and for
    a calibration that lacks.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UsageError(
            f"The method {shown(name)} is not known", f"take one of {', '.join(METHODS)}"
        )
    method = METHODS[name]
    chosen: dict[str, Any] = {k: _setting(v, calibration) for k, v in (settings or {}).items()}
    allowed = {field.name for field in fields(method)}
    if unknown := sorted(set(chosen) - allowed):
        raise UsageError(
            f"{name} has no setting {unknown[0]}",
            f"it takes {', '.join(sorted(allowed - {'calibration'})) or 'none'}",
        )
    required = {f.name for f in fields(method) if f.default is f.default_factory is MISSING}
    if lacking := sorted(required - {"calibration", *chosen}):
        raise UsageError(f"{name} was given no {lacking[0]}", "it cannot do without")
    chosen = _typed(method, chosen)
    if needs_calibration(name):
        if calibration is None:
            raise UsageError(
                f"{name} has to learn of the model on other texts first", "give its calibration"
            )
        chosen["calibration"] = calibration
    return method(**chosen)


def _typed(method: type[Compressor], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as the fields of the method are annotated."""
    hints = get_type_hints(method)
    try:
        return {name: _fitting(hints[name], value, name) for name, value in settings.items()}
    except ValueError as error:
        raise UsageError(f"A setting of {method.name} does not fit: {error}") from None


def _fitting(wanted: Any, value: Any, name: str) -> Any:
    if not (isinstance(wanted, type) and issubclass(wanted, Compressor | Calibration)):
        return fitting(wanted, value, name)
    if not isinstance(value, Compressor | Calibration | str):
        raise ValueError(f"{name} is {shown(value)}, and takes a method")
    return value


def _setting(value: Any, calibration: Calibration | None) -> Any:
    if isinstance(value, Mapping):
        settings = dict(value)
        if any(isinstance(inner, Mapping) for inner in settings.values()):
            raise UsageError("A method that is part of another was given one itself",
                             "its name and its own settings are all that it takes")  # fmt: skip
        return make(settings.pop("name", "without a name"), settings, calibration)
    return value


def needs_calibration(name: str, settings: Mapping[str, Any] | None = None) -> bool:
    """Whether a method, or one that it is made of, cannot do without what was learned of the
    model; False for one that there is not."""
    return bool(learns(name, settings))


def learns(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """Which calibration of a model a method, or one that it is made of, cannot do without; empty
    for one that takes none, or that there is not."""
    method = METHODS.get(name) if isinstance(name, str) else None
    takes = method is not None and any(f.name == "calibration" for f in fields(method))
    own = method.learns if method is not None and takes else ""
    inner = [v for v in (settings or {}).values() if isinstance(v, Mapping)]
    return own or "".join(learns(each.get("name", ""), each) for each in inner)
