"""Layers that share one basis: neighbours of the same kind that hold the same tokens."""

from collections.abc import Callable, Sequence

from data.cache import KVCache


def alike(cache: KVCache) -> list[list[int]]:
    """The cached layers, by their places, in groups of the same kind that hold the same tokens."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, layer in enumerate(cache.layers):
        groups.setdefault((layer.kind, layer.n_tokens), []).append(i)
    return list(groups.values())


def neighbours(
    layers: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[tuple[int, ...]]:
    """Layers that follow each other: one joins those before it as long as that still `fits`."""
    groups = []
    group: list[int] = []
    for i in layers:
        if group and not fits([*group, i]):
            groups.append(tuple(group))
            group = []
        group.append(i)
    return [*groups, tuple(group)]
