"""What a model keeps of a text, as a table and in a sentence: keys and values, and all beside."""

from collections.abc import Iterable

import pandas as pd

from data.cache import BYTES_PER_ENTRY, KINDS
from data.inventory import STATE, Held, Inventory

MIB = 2**20
# What layers of transformers call it -> in the field's terms; others stand under their own name.
NAMES = {
    "recurrent_states": "recurrent states",
    "conv_states": "convolution states",
    "linear_cache": "states of linear attention",
    "indexer_keys": "keys of a sparse index",
    "indexer_position_ids": "positions of a sparse index",
    "idx_keys": "keys of a sparse index",
    "compressed_kv": "compressed entries",
    "buffer_kv": "tokens not yet compressed",
    "buffer_gate": "tokens not yet compressed",
    "overlap_kv": "tokens that compressed entries share",
    "overlap_gate": "tokens that compressed entries share",
}


def inventory_table(inventory: Inventory) -> pd.DataFrame:
    """layer, kind, name, path, dtype, shape, counted_bytes (keys and values in 16 bits, all else as
    it is held, the same memory once), same_as (where that is counted), analysed."""
    columns = ["layer", "kind", "name", "path", "dtype", "shape"]
    columns += ["counted_bytes", "same_as", "analysed"]
    rows = [
        (
            each.layer,
            each.kind,
            each.name,
            each.path,
            each.dtype,
            " x ".join(map(str, each.shape)),
            each.nbytes,
            each.same_as,
            each.kind in KINDS,
        )
        for each in inventory.held
    ]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})


def what_it_is(inventory: Inventory) -> str:
    """What a KV cache is, and what this one takes per token."""
    meaning = (
        "A KV cache is what a model keeps of each token so as not to compute it again: a key and a "
        "value in every layer"
    )
    held = [each for each in inventory.of_kind(*KINDS) if not each.same_as]
    shapes = {each.shape[-3:] for each in held}  # (kv_heads, tokens, dim) of a batch of one
    if any(len(shape) < 3 for shape in shapes):
        return f"{meaning}."
    per_token = BYTES_PER_ENTRY * sum(each.shape[-3] * each.shape[-1] for each in held)
    n_tokens = max(tokens for _, tokens, _ in shapes)
    in_all = f"{per_token:,} bytes per token; {size(inventory.kv_nbytes)} at {n_tokens:,} tokens"
    if len(shapes) == 1 and len(held) == 2 * len(inventory.layers):
        (heads, _, dim), bits = shapes.pop(), 8 * BYTES_PER_ENTRY
        layers, head_names = _many(len(inventory.layers), "layer"), _many(heads, "KV head")
        return f"{meaning}. Here {layers} x {head_names} x {dim} dims x 2 x {bits} bits = {in_all}."
    window = ", of which layers with a window keep fewer" if _windows(shapes) else ""
    return f"{meaning}. Here, in layers that differ, {in_all}{window}."


def _windows(shapes: set[tuple[int, ...]]) -> bool:
    return len({shape[2] for shape in shapes}) > 1


def _many(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def kept(inventory: Inventory) -> str:
    """What is kept, in a sentence that says what of it is analysed."""
    n, of = len(inventory.layers), inventory.n_slots
    layers = f"all {of} layers" if n == of else f"{n} of {of} layers"
    line = f"Keys and values: {size(inventory.kv_nbytes)} in 16 bits, in {layers}"
    same = [each for each in inventory.of_kind(*KINDS) if each.same_as]
    if same:
        line += f" ({_layers(same)} with values that are the keys, counted once)"
    if not inventory.state_nbytes:
        return f"{line}; that is all that is kept."
    return f"{line}; {beside(inventory)}: {size(inventory.nbytes)} is all that is kept."


def beside(inventory: Inventory) -> str:
    """What is kept beside keys and values, in the middle of a sentence."""
    states: dict[str, list[Held]] = {}
    for each in inventory.of_kind(STATE):
        states.setdefault(NAMES.get(each.name, each.name), []).append(each)
    parts = [f"{_nbytes(held)} of {name} in {_layers(held)}" for name, held in states.items()]
    return f"beside them, as held and not analysed, {' and '.join(parts)}"


def size(nbytes: int) -> str:
    return f"{nbytes / MIB:.1f} MiB" if nbytes >= MIB else f"{nbytes:,} bytes"


def _nbytes(held: Iterable[Held]) -> str:
    return size(sum(each.nbytes for each in held))


def _layers(held: Iterable[Held]) -> str:
    return _many(len({each.layer for each in held}), "layer")
