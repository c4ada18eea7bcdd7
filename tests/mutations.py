"""Mutations of a sealed file that keep its structure: what someone who means harm would try, with
the checksum computed anew."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

JSON = ("settings", "shape", "facts")  # parts of a header that hold JSON
OFTEN = 5 * ("settings", "shape")
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 8, 9, 255, 10**9, 10**12, 10**400, -(10**9)),
    *(0.0, 0.5, 4.5, -0.5, 1e-40, 1e30, 1e300, float("nan"), float("inf")),
    *("", "4", "key", "none", "coded", "float32", "load", "\x1b[31m", "x" * 1000),
    *([], [1], [[1, 2]], {}, {"name": "kivi"}, {"a": [{}]}),
)
SIZES = (lambda n: n + 1, lambda n: n - 1, lambda n: 2 * n, lambda n: 1000 * n, lambda n: 10**9 * n)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
FILLS = (0, 1, -1, 127, 128, 255, -(2**31), 65504.0, float("nan"), float("inf"))
Tensors = dict[str, torch.Tensor]
Draw = Callable[..., Any]


@dataclass(frozen=True)
class Mutated:
    """What a file is to hold, and what was changed in words."""

    tensors: Tensors = field(repr=False)
    header: dict[str, str] = field(repr=False)
    changes: tuple[str, ...]


@st.composite
def mutated(
    draw: Draw, honest: Callable[[str], tuple[Tensors, dict[str, str]]], name: str
) -> Mutated:
    """An honest file of this name with one to three things changed."""
    tensors, header = map(dict, honest(name))
    changes: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        if tensors and draw(st.booleans()):
            changes.append(_change_tensors(draw, tensors))
        elif header:
            changes.append(_change_words(draw, header))
    return Mutated(tensors, header, tuple(changes))


def _change_words(draw: Draw, header: dict[str, str]) -> str:
    often = [part for part in OFTEN if part in header]
    part = draw(st.sampled_from([*often, *sorted(header)]))
    kind = draw(st.sampled_from(["within"] * 8 + ["drop", "add", "replace"]))
    if kind == "within" and part in JSON:
        tree = _tree(header[part])
        found = list(places(tree))
        said = change_place(draw, *draw(st.sampled_from(found))) if found else ""
        header[part] = json.dumps(tree)
        return f"{part}: {said}"
    if kind == "drop":
        del header[part]
    elif kind == "add":
        header["more"] = "of it"
    else:
        said = [
            "",
            "[" * 5000,
            "9" * 5000,
            "{}",
            "[]",
            "null",
            "none",
            "kivi",
            "\x1b[31m",
            "[1e999]",
        ]
        header[part] = draw(st.sampled_from(said))
    return f"{kind} {part} {header.get(part, '')[:20]!r}"


def _tree(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # changed before
        return {}


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything within."""
    if not isinstance(tree, dict | list):
        return
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        yield from places(value)


def change_place(draw: Draw, container: Any, key: Any) -> str:
    value, kind = container[key], draw(st.sampled_from(["odd", "odd", "scale", "drop", "add"]))
    odd = copy.deepcopy(draw(st.sampled_from(ODD)))
    if kind == "scale" and isinstance(value, int) and not isinstance(value, bool):
        container[key] = odd = draw(st.sampled_from(SIZES))(value)
    elif kind == "drop":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        key = draw(st.sampled_from(["seed", "name", "bits", "zzz"]))
        container[key] = odd
    elif kind == "add":
        container.insert(0, value)
    else:
        container[key] = odd
    return f"{kind} {key} {odd!r:.40}"


def _change_tensors(draw: Draw, tensors: Tensors) -> str:
    name = draw(st.sampled_from(sorted(tensors)))
    x, kind = (
        tensors[name],
        draw(st.sampled_from(["fill", "entry", "sizes", "sizes", "dtype", "name"])),
    )
    if kind == "name":
        other = draw(st.sampled_from([None, "more", f"{name}x", *sorted(tensors)]))
        if other is None:
            del tensors[name]
        else:
            tensors[other] = x.clone()
        return f"{name} as {other}"
    if kind == "dtype":
        changed = x.float().to(draw(st.sampled_from(DTYPES)))
    elif kind == "sizes":
        changed = draw(st.sampled_from(_resized(x))).clone().contiguous()
    else:
        changed = x.clone()
        value = draw(st.sampled_from(FILLS))
        finite = value if x.is_floating_point() or math.isfinite(value) else 7
        filled = torch.tensor(finite).to(x.dtype)
        if kind == "fill":
            changed = filled.expand(x.shape).clone()
        elif x.numel():
            changed.view(-1)[draw(st.integers(0, x.numel() - 1))] = filled
        kind = f"{kind} {value}"
    tensors[name] = changed
    return f"{kind} {name}: {changed.dtype} {tuple(changed.shape)}"


def _resized(x: torch.Tensor) -> list[torch.Tensor]:
    """The same with other sizes."""
    others = [x.flatten(), x[None], x.flatten()[:0], x.new_zeros(0, 10**9), x.new_zeros(())]
    if x.numel() and x.ndim:
        others += [x[:-1], x[1:], x[..., :-1], x[..., :0], x[:1].expand(len(x) + 1, *x.shape[1:])]
        others += [x.transpose(0, -1), torch.cat([x, x], dim=-1)]
    return others
