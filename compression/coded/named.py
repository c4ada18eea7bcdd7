"""What the tensors of `coded` and of its calibration hold, in words."""

from collections.abc import Sequence

from compression.coded.groups import Group
from compression.parts import BOTH, PLAIN, Part
from compression.shapes import CacheShape
from data.cache import KINDS

# By the first word of their names
OF_ALL_LAYERS = {
    "codes": "magnitudes of columns",
    "mean_level": "precision of tokens",
    "words": "integers",
    "state": "states of the entropy coder",
    "escapes": "integers too large for the tables",
    "widths": "bits of each block",
    "bits": "integers",
}
OF_NO_LAYER = {
    "levels": "precision of tokens",
    "scales": "scales of the roots",
    "weights": "precision of tokens",
    "weights_without_queries": "precision of tokens",
    "watched": "precision of tokens",
    "tables": "tables of the entropy coder",
    "basis_tables": "tables of the entropy coder",
}
OF_NEIGHBOURS = {"means": "means", "basis": "basis", "layers": "layers of each group"}
OF_A_GROUP = {"joined": "layers of each group", "turn": "basis"}
OF_A_PLACE = {"ends": PLAIN, "roots": "roots of the Fisher information"}
SEGMENT = "segments"  # then its number, before the names of what is coded together


def part(name: str, groups: Sequence[Group], shape: CacheShape) -> Part:
    """What the tensor of this name is of, among what is stored or was learned of a model."""
    first, *rest = name.split(".")
    if first == "queries":
        return Part("queries to be expected", (shape.layers[int(rest[0])].index,), KINDS[0])
    if first == SEGMENT:
        return part(".".join(rest[1:]), groups, shape)
    if first in OF_A_PLACE:
        return Part(OF_A_PLACE[first], (shape.layers[int(rest[0])].index,), rest[1])
    if first in OF_NEIGHBOURS or first in OF_A_GROUP:
        word = (OF_NEIGHBOURS | OF_A_GROUP)[first]
        of = groups if first in OF_A_GROUP else [n for group in groups for n in group.neighbours]
        layers = sorted(shape.layers[i].index for i in of[int(rest[0])].layers)
        return Part(word, tuple(layers), BOTH)
    if first in OF_ALL_LAYERS:
        return Part(OF_ALL_LAYERS[first], tuple(layer.index for layer in shape.layers), BOTH)
    return Part(OF_NO_LAYER[first])
