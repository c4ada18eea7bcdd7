"""Compressed prompts that are damaged, of something else, or sealed and yet absurd."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import opened
from tests.hostile.case import Case, Prepare, early, late
from tests.hostile.texts import pipe

LOAD = "--load_compressed prompt.kv --new_tokens 3"
Header = dict[str, Any]  # of a stored prompt, its values read from JSON where they are JSON


def _bytes(change: Callable[[bytes], bytes]) -> Prepare:
    def damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
        file = folder / "prompt.kv"
        file.write_bytes(change(file.read_bytes()))

    return damaged


def _sealed_with(
    of_header: Callable[[Header], object] = lambda header: None,
    of_tensors: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
) -> Prepare:
    """A stranger's file: something else within, and a checksum that fits."""

    def changed(folder: Path, patch: pytest.MonkeyPatch) -> None:
        tensors, header = opened.read(folder / "prompt.kv")
        read = {name: _read(value) for name, value in header.items()}
        of_header(read)
        of_tensors(tensors)
        again = {k: v if isinstance(v, str) else json.dumps(v) for k, v in read.items()}
        opened.write(folder / "prompt.kv", tensors, again)

    return changed


def _read(value: str) -> Any:
    return json.loads(value) if value.startswith(("{", "[")) else value


def _shape(**changes: Any) -> Prepare:
    return _sealed_with(lambda header: header["shape"].update(changes))


def _layer(**changes: Any) -> Prepare:
    return _sealed_with(lambda header: header["shape"]["alike"][1].update(changes))


def _index(index: int) -> Prepare:
    """The second layer as one of this index in the model."""
    return _sealed_with(lambda header: header["shape"]["layers"][1].__setitem__(0, index))


def _ids(*ids: int) -> Prepare:
    tensor = torch.tensor(ids, dtype=torch.int32)
    return _sealed_with(of_tensors=lambda tensors: tensors.update(token_ids=tensor))


def _facts(**changes: Any) -> Prepare:
    return _sealed_with(lambda header: header["facts"].update(changes))


def _settings(**changes: Any) -> Prepare:
    return _sealed_with(lambda header: header["settings"].update(changes))


def _without(*path: str) -> Prepare:
    def cut(header: Header) -> None:
        *above, last = path
        for name in above:
            header = header[name]
        del header[last]

    return _sealed_with(cut)


def _tensors(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Prepare:
    def changed(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            new = change(name, tensor)
            del tensors[name]
            if new is not None:
                tensors[name] = new.contiguous().clone()

    return _sealed_with(of_tensors=changed)


def _one(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Prepare:
    """The first tensor changed."""
    seen: list[str] = []

    def first(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        seen.append(name)
        return change(tensor) if len(seen) == 1 else tensor

    return _tensors(first)


DAMAGED: dict[str, Prepare] = {
    "empty": _bytes(lambda whole: b""),
    "cut at the end": _bytes(lambda whole: whole[:-1]),
    "cut in the header": _bytes(lambda whole: whole[:20]),
    "a byte changed": _bytes(lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]),
    "bytes behind it": _bytes(lambda whole: whole + b"\0" * 8),
    "words": _bytes(lambda whole: b"Once upon a time" * 99),
    "another format": _sealed_with(lambda header: header.update(format="compressed cache 1")),
    "no format": _without("format"),
}
STRANGE: dict[str, Prepare] = {
    "an unknown method": _sealed_with(lambda header: header.update(method="zip")),
    "a method with escapes": _sealed_with(lambda header: header.update(method="\x1b[31mzip")),
    "another method than its tensors": _sealed_with(lambda header: header.update(method="svd")),
    "an evicting method": _sealed_with(lambda header: header.update(method="snapkv")),
    "no method": _without("method"),
    "no settings": _without("settings"),
    "settings that are a list": _sealed_with(lambda header: header.update(settings=[1])),
    "settings that are no JSON": _sealed_with(lambda header: header.update(settings="x")),
    "a setting that there is not": _settings(zip=3),
    "no shape": _without("shape"),
    "no layers": _shape(layers=[]),
    "layers that are words": _shape(layers=["a", "b"]),
    "a layer too few": _sealed_with(lambda header: header["shape"]["layers"].pop()),
    "a layer of 10^12 tokens": _layer(n_tokens=10**12),
    "a layer of -1 tokens": _layer(n_tokens=-1),
    "a layer of half a token": _layer(n_tokens=0.5),
    "a layer of 10^9 heads": _layer(n_heads=10**9),
    "a layer of no dimensions": _layer(key_dim=0),
    "a layer that starts at 10^12": _layer(start=10**12),
    "a layer of number 99": _index(99),
    "a layer of number -1": _index(-1),
    "a layer twice": _index(0),
    "a layer of no kind": _layer(kind="\x1b[31mnone"),
    "a layer of a dtype that there is not": _layer(dtype="float3"),
    "a layer of a dtype that is none": _layer(dtype="nn"),
    "a layer of integers": _layer(dtype="int64"),
    "a setting of a layer too many": _layer(zip=3),
    "a rotation that is none": _layer(rotary={"frequencies": ["a"]}),
    "a rotation that is not there": _layer(rotary=7),
    "token ids of words": _shape(ids="str"),
    "negative token ids": _ids(*[-5] * 59),
    "token ids beyond all vocabularies": _ids(*[10**9] * 59),
    "one token id for 59 tokens": _ids(5),
    "a prompt of -1 tokens": _shape(n_prompt=-1),
    "no facts": _without("facts"),
    "no last token": _without("facts", "last"),
    "words for a last token": _facts(last="and"),
    "a last token of -1": _facts(last="-1"),
    "a last token beyond the vocabulary": _facts(last="299999"),
    "words for cached": _facts(cached="all"),
    "other tokens cached than there are": _facts(cached="12"),
    "of another model": _facts(model="0" * 64, model_name="\x1b[31mevil"),
    "no tensors": _tensors(lambda name, x: None),
    "a tensor too few": _one(lambda x: None),
    "a tensor of another shape": _one(lambda x: x.flatten()[:-1]),
    "a tensor of another dtype": _one(lambda x: x.to(torch.int64)),
    "NaN for numbers": _tensors(
        lambda name, x: torch.full_like(x, torch.nan) if x.is_floating_point() else x
    ),
}
LOADS = (
    *(late("store", LOAD, "prompt.kv", what=w, prepare=p) for w, p in (DAMAGED | STRANGE).items()),
    late("store", "--load_compressed nowhere.kv", "nowhere.kv"),
    late("store", f"{LOAD} --save_compressed new.kv", "stored as", "coded_chunks"),
    late("store", f"{LOAD} --text_file nowhere.txt", "nowhere.txt"),
    late("store", "--load_compressed text.txt", "text.txt"),
    late("store", "--load_compressed model/model.safetensors", "model.safetensors"),
    late("store", f"{LOAD} --dtype bfloat16", "prompt.kv", "dtype"),
    early("store", "--load_compressed out", "out"),
    early("store", "--load_compressed /dev/zero", "/dev/zero"),
    early(
        "store",
        "--load_compressed pipe.kv",
        "pipe.kv",
        what="a pipe without a writer",
        prepare=partial(pipe, name="pipe.kv"),
    ),
    *(
        Case("store", ("--load_compressed", f"nowhere{odd}"), ("nowhere",))
        for odd in ("\0", "\udcff", "\x1b[31m", "x" * 300)
    ),
)
BUDGETS = tuple(
    late(
        "compare",
        f"--quiet {budget} --methods {method}",
        budget.split()[0],
        what="nothing fits; the results are written",
        changes=("out/compar*", "out/cache_inventory.csv", "out/report.html", "home/*"),
    )
    for budget, method in (
        ("--max_kl 1e-30 --max_bits 0.01", "kivi"),
        ("--max_bytes_per_token 0.5", "int8"),  # that costs nothing here: no cost is above 0
    )
)


def _file_for_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("KV_CACHE_HOME", str(folder / "text.txt"))


def _nobodys_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("KV_CACHE_HOME", "~nobody-here/x")


A_FILE = {"what": "a file for a cache folder", "prepare": _file_for_home}
NOBODYS = {"what": "a cache folder of nobody's", "prepare": _nobodys_home}
HOMES = (
    late("calibrate", "", "text.txt", "KV_CACHE_HOME", **A_FILE, notes=True),
    late("calibrate", "--model smollm2-135m", "text.txt", "KV_CACHE_HOME", **A_FILE),
    late("calibrate", "--model smollm2-135m", "cache folder", "~nobody-here/x", **NOBODYS),
    late("compare", "", "cache folder", "~nobody-here/x", **NOBODYS),
)
CASES = (*LOADS, *BUDGETS, *HOMES)
