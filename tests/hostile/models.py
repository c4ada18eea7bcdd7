"""Models that are not there, are none, are damaged, or compute nothing that can be used."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import families
from tests.hostile.case import Case, Prepare, late
from tests.hostile.texts import LONE

LOADERS = ("analyze", "tucker", "compress", "prune", "compare", "calibrate")
SAVE = "--save_compressed new.kv"
WEIGHTS, SETTINGS = "model.safetensors", "config.json"


def _removed(*names: str) -> Prepare:
    return lambda folder, patch: [(folder / "model" / name).unlink() for name in names]


def _written(name: str, content: bytes) -> Prepare:
    return lambda folder, patch: (folder / "model" / name).write_bytes(content)


def _cut(name: str, share: float) -> Prepare:
    def cut(folder: Path, patch: pytest.MonkeyPatch) -> None:
        whole = (folder / "model" / name).read_bytes()
        (folder / "model" / name).write_bytes(whole[: int(share * len(whole))])

    return cut


def _folder_for(name: str) -> Prepare:
    def made(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (folder / "model" / name).unlink()
        (folder / "model" / name).mkdir()

    return made


def _set(**changes: Any) -> Prepare:
    """Other settings in the config.json."""

    def edited(folder: Path, patch: pytest.MonkeyPatch) -> None:
        file = folder / "model" / SETTINGS
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edited


def _only(**settings: Any) -> Prepare:
    """A config.json with nothing else in it."""
    return _written(SETTINGS, json.dumps(settings).encode())


def _pickled(folder: Path, patch: pytest.MonkeyPatch) -> None:
    weights = load_file(folder / "model" / WEIGHTS)
    torch.save(weights, folder / "model" / "pytorch_model.bin")
    (folder / "model" / WEIGHTS).unlink()


def _with(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Prepare:
    """Each tensor of the weights as `change` gives it; None to leave it out."""

    def changed(folder: Path, patch: pytest.MonkeyPatch) -> None:
        file = folder / "model" / WEIGHTS
        new = {name: change(name, tensor) for name, tensor in load_file(file).items()}
        kept = {name: tensor.clone() for name, tensor in new.items() if tensor is not None}
        save_file(kept, file, metadata={"format": "pt"})

    return changed


def _filled(part: str, number: float) -> Prepare:
    """All weights whose names hold `part` are this number."""
    return _with(lambda name, x: torch.full_like(x, number) if part in name else x)


def _family(folder: Path, patch: pytest.MonkeyPatch, name: str, **settings: Any) -> None:
    shutil.rmtree(folder / "model")
    families.save(families.model(name, settings), folder / "model")


def _renamed(folder: Path, patch: pytest.MonkeyPatch, name: str) -> None:
    (folder / "model").rename(folder / name)
    (folder / name / WEIGHTS).write_bytes(b"")


def _model(what: str, prepare: Prepare, *says: str, mode: str = "analyze", flags: str = "") -> Case:
    return late(mode, flags, *says, what=what, prepare=prepare)


NAMES = (
    *(late(mode, "--model ./nowhere", "--model", "./nowhere") for mode in LOADERS),
    late("store", f"{SAVE} --model ./nowhere", "./nowhere"),
    late("store", "--load_compressed prompt.kv --model ./nowhere", "./nowhere"),
    late("list_samples", "--model ./nowhere", "./nowhere"),
    late("calibrate", "--model nobody/nothing", "nobody/nothing"),
    late("calibrate", "--model text.txt", "text.txt"),
    late("calibrate", "--model out", "out"),
    late("calibrate", "--model ''", "--model"),
    late("calibrate", "--model ' '", "--model"),
    late("calibrate", "--model ~nobody-here/x", "~nobody-here"),
    late("calibrate", f"--model {'x' * 5000}", "--model"),
    late("calibrate", "--model nowhere.gguf", "nowhere.gguf"),
    *(
        Case(mode, ("--model", f"./a{odd}"), ("--model",))
        for mode in ("calibrate", "list_samples")
        for odd in ("\0b", LONE, "\x1b[31mred", "\u202eder", "\nb")
    ),
    _model(
        "a damaged model with escape characters in its name",
        partial(_renamed, name="mo\x1b[31mdel"),
        "--model",
        mode="calibrate",
        flags="--model ./mo\x1b[31mdel",
    ),
)
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
OWN_CODE = {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}
CONFIGS = (
    _model("without config.json", _removed(SETTINGS), "./model", "config.json"),
    _model("broken config.json", _written(SETTINGS, b'{"model'), "./model"),
    _model("a list for a config.json", _written(SETTINGS, b"[]"), "./model"),
    _model("a binary config.json", _written(SETTINGS, b"\xff\xfe\0"), "./model"),
    _model("a folder for a config.json", _folder_for(SETTINGS), "./model"),
    _model("without a model_type", _only(hidden_size=64), "./model"),
    _model("an unknown model_type", _only(model_type="zzz"), "./model"),
    _model("escapes in its model_type", _only(model_type="\x1b[31mzzz"), "./model"),
    _model("an encoder-decoder", _only(**T5), "./model", "encoder-decoder"),
    _model("no language model", _only(model_type="vit"), "./model"),
    _model("code of its own", _only(model_type="my", auto_map=OWN_CODE), "trust_remote_code"),
    _model("no layers", _set(num_hidden_layers=0), "model"),
    _model("words for a number of layers", _set(num_hidden_layers="two"), "./model"),
    _model("a negative number of heads", _set(num_attention_heads=-4), "./model"),
    _model("more layers than weights", _set(num_hidden_layers=3), "./model", "lacks"),
    _model("weights of other shapes", _set(intermediate_size=48), "./model", "shape"),
    _model("an unknown activation", _set(hidden_act="zzz"), "./model"),
)
FILES = (
    *(_model("without weights", _removed(WEIGHTS), "./model", mode=m) for m in LOADERS),
    *(_model("truncated weights", _cut(WEIGHTS, 0.7), "./model", mode=m) for m in LOADERS),
    _model("empty weights", _written(WEIGHTS, b""), "./model"),
    _model("words for weights", _written(WEIGHTS, b"Once upon a time" * 9), "./model"),
    _model("a header of 2^63 bytes", _written(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), "./model"),
    _model("weights that cannot be read", _folder_for(WEIGHTS), "./model"),
    _model("only a pickle", _pickled, "./model", "safetensors"),
    _model("one weight lacks", _with(lambda n, x: None if "layers.1.mlp.up" in n else x), "lacks"),
    _model("without a tokenizer", _removed("tokenizer.json", "tokenizer_config.json"), "./model"),
    _model("broken tokenizer.json", _written("tokenizer.json", b'{"version"'), "./model"),
    _model("tokenizer.json of nothing", _written("tokenizer.json", b"{}"), "./model"),
    _model(
        "broken tokenizer.json",
        _written("tokenizer.json", b'{"version"'),
        "tokenizer",
        mode="list_samples",
    ),
    _model("a folder for a tokenizer", _folder_for("tokenizer.json"), "./model"),
    *(
        _model(
            f"x.gguf of {what}",
            lambda folder, patch, content=content: (folder / "x.gguf").write_bytes(content),
            "x.gguf",
            mode="calibrate",
            flags="--model ./x.gguf",
        )
        for what, content in (
            ("words", b"Once upon a time" * 99),
            ("no bytes", b""),
            ("a header alone", b"GGUF\x03\0\0\0" + b"\xff" * 16),
        )
    ),
)
STUDIES = ("tucker", "compress", "prune", "compare", "analyze_similarity")
FEW_IDS = partial(_family, name="llama_gqa", vocab_size=90)
NAN_IN_A_LAYER = _filled("1.self_attn.k_proj", math.nan)
NAN_IN_THE_HEAD = _filled("lm_head", math.nan)
NUMBERS = (
    *(
        _model(what, prepare, "NaN|not finite", mode=mode, flags=flags)
        for what, prepare in (
            ("NaN in a layer", NAN_IN_A_LAYER),
            ("NaN in the LM head", NAN_IN_THE_HEAD),
        )
        for mode, flags in (
            *((mode, "") for mode in ("analyze", "analyze_generation", *STUDIES)),
            ("store", SAVE),
        )
    ),
    _model("Inf in a layer", _filled("0.self_attn.v_proj", math.inf), "Inf"),
    replace(  # no bad input at all, and yet nothing to divide by
        _model("all zero", _filled("", 0.0), mode="tucker", flags="--quiet --energy 0.9"),
        code=0,
        changes=("out/tucker*", "out/cache_inventory.csv", "out/report.html", "home/report*"),
    ),
    *(
        _model("token ids beyond its vocabulary", FEW_IDS, "vocabulary", mode=mode, flags=flags)
        for mode, flags in (("analyze", ""), ("tucker", ""), ("compare", ""), ("store", SAVE))
    ),
)
CASES = (*NAMES, *CONFIGS, *FILES, *NUMBERS)
