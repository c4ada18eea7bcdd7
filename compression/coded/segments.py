"""Which tokens of which layers `coded` codes together: the whole text, or parts of it where it is
so long that its integers would take too much memory at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compression.coded import named
from compression.coded.groups import Group
from compression.shapes import CacheShape, LayerShape

# Of a cache that are coded together: 5,825 tokens of the default model. Working memory is about
# twenty bytes for each; beyond, parts of the text are coded apart.
MOST_ENTRIES = 1 << 26

OfGroup = tuple[Group, slice]  # its tokens, by their positions in the text


@dataclass(frozen=True)
class Segment:
    """prefix: how the names of what is stored of it begin. groups: those that hold some of its
    tokens after the sinks."""

    prefix: str
    groups: tuple[OfGroup, ...]

    @property
    def tokens(self) -> slice:
        """The positions that any of its groups holds."""
        of_groups = [tokens for _, tokens in self.groups]
        return slice(min(t.start for t in of_groups), max(t.stop for t in of_groups))


def segments(groups: Sequence[Group], shape: CacheShape, n_sinks: int) -> Iterator[Segment]:
    """Of equal length, in the order of the text; without those that hold nothing to code."""
    n, n_tokens = -(-shape.n_entries // MOST_ENTRIES), len(shape.token_ids)
    for k in range(n):
        start, end = n_tokens * k // n, n_tokens * (k + 1) // n
        inside = [
            (group, slice(max(tokens.start, start), min(tokens.stop, end)))
            for group, tokens in _after_sinks(groups, shape, n_sinks)
        ]
        held = tuple(each for each in inside if each[1].start < each[1].stop)
        if held:
            yield Segment("" if n == 1 else f"{named.SEGMENT}.{k}.", held)


def span(layer: LayerShape) -> tuple[int, int]:
    """The first position that it holds, and the one after the last."""
    return layer.start, layer.start + layer.n_tokens


def _after_sinks(groups: Sequence[Group], shape: CacheShape, n_sinks: int) -> Iterator[OfGroup]:
    for group in groups:
        start, end = span(shape.layers[group.layers[0]])
        if start + n_sinks < end:
            yield group, slice(start + n_sinks, end)
