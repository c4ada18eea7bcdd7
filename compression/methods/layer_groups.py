"""Layers that share one basis: neighbours of the same kind that hold the same tokens."""

from collections.abc import Callable, Sequence

from data.cache import KVCache


def neighbours(cache: KVCache, fits: Callable[[Sequence[int]], bool]) -> list[tuple[int, ...]]:
    """The cached layers, each in one group, by its place; a layer joins the group of the one before
    it as long as that still `fits`."""
    alike: dict[tuple[str, int], list[int]] = {}
    for i, layer in enumerate(cache.layers):
        alike.setdefault((layer.kind, layer.n_tokens), []).append(i)
    groups = []
    for layers in alike.values():
        group: list[int] = []
        for i in layers:
            if group and not fits([*group, i]):
                groups.append(tuple(group))
                group = []
            group.append(i)
        groups.append(tuple(group))
    return groups
