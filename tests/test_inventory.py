"""All that a model's cache object holds is counted once or named, and said."""

import gc

import pandas as pd
import pytest
import torch

from analysis.inventory import inventory_table, kept, what_it_is
from data import extraction
from data.inventory import Inventory, leaves
from tests import caches, families
from tests.commands import done, of_mode

EVERY = {**families.SETTINGS, **families.KEEPS_MORE}
TOKENS = 42


def prefilled(name):
    return extraction.prefill(families.loaded(name), families.token_ids(TOKENS))


def reached(past) -> list[torch.Tensor]:
    """Every tensor that can be reached from an object by the garbage collector, each once."""
    found, seen, ahead = [], set(), [past]
    while ahead:
        x = ahead.pop()
        if id(x) in seen or isinstance(x, type | torch.nn.Module):
            continue
        seen.add(id(x))
        if torch.is_tensor(x):
            found.append(x)
        else:
            ahead += gc.get_referents(x)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_what_is_counted_is_all_that_can_be_reached_each_memory_once(name):
    start = prefilled(name)
    inventory = Inventory.of(start.past)
    once = {(x.data_ptr(), x.shape): x for x in reached(start.past) if x.numel()}.values()
    layers = [x for x in start.past.layers if getattr(x, "keys", None) is not None]
    kv = {x.data_ptr(): x for layer in layers for x in (layer.keys, layer.values)}
    entries = sum(x.numel() for x in kv.values())
    assert inventory.kv_nbytes == 2 * entries
    beside = [x for x in once if x.data_ptr() not in kv and x.ndim]
    held = sum(x.numel() * x.element_size() for x in beside)
    assert inventory.state_nbytes == held and inventory.nbytes == 2 * entries + held
    assert len(inventory.of_kind("counter")) == len([x for x in once if not x.ndim])
    assert inventory.layers == [layer.index for layer in start.cache.layers]
    assert bool(held) == (name in families.WITH_STATES)


@pytest.mark.parametrize(
    ("name", "numbers", "says"),
    [
        ("llama_gqa", 0, "in all 2 layers; that is all that is kept."),
        ("gemma4", 0, "in 2 of 4 layers; that is all that is kept."),
        ("qwen3_next", 128 * 4 + 4 * 16 * 16, "4,096 bytes of recurrent states in 1 layer"),
        ("lfm2", 64 * 3, "768 bytes of convolution states in 1 layer: "),
        ("deepseek_v32", 2 * TOKENS * 16, "5,376 bytes of keys of a sparse index in 2 layers: "),
        ("deepseek_v4", 832 + 144, "of compressed entries in 2 layers"),
    ],
)
def test_what_is_beside_keys_and_values_is_said_with_its_bytes(name, numbers, says):
    inventory = Inventory.of(prefilled(name).past)
    assert inventory.state_nbytes == 4 * numbers
    assert says in kept(inventory)
    facts = inventory.facts
    assert sum(facts["not_analysed_bytes_as_held"].values()) == 4 * numbers
    assert facts["all_kept_bytes"] == facts["keys_and_values_bytes_in_16_bits"] + 4 * numbers


def test_values_that_are_the_keys_count_once():
    start = prefilled("deepseek_v4")
    inventory = Inventory.of(start.past)
    assert inventory.kv_nbytes < start.cache.nbytes
    assert "(2 layers with values that are the keys, counted once)" in kept(inventory)
    table = inventory_table(inventory).set_index("path")
    assert table["same_as"]["layers.1.values"] == "layers.1.keys"
    assert table["counted_bytes"]["layers.1.values"] == 0
    assert table["counted_bytes"]["layers.1.keys"] == 2 * 15 * 16


def test_objects_that_lead_to_themselves_are_walked_once():
    class Layer:
        pass

    layer, other = Layer(), Layer()
    layer.states, layer.back, other.first = {"a": [torch.ones(3)]}, other, layer
    found = dict(leaves({"layers": [layer]}))
    assert found["layers.0.states.a.0"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("focus", ["layers", "generation"])
def test_a_run_says_what_is_kept_in_output_table_and_manifest(
    folder_of, tmp_path, empty_cache, focus
):
    mode, flags = "analyze", ["--analysis_focus", "layers"]
    if focus == "generation":
        mode, flags = "analyze_generation", ["--new_tokens", "4"]
    out = tmp_path / "out"
    flags += ["--sequence_length", "40"]
    ended = done(out, *of_mode(mode, folder_of("qwen3_next"), out, *flags))
    assert ended.code == 0
    line = (
        "Keys and values: 5,120 bytes in 16 bits, in 1 of 2 layers; beside them, as held and not "
        "analysed, 2,048 bytes of convolution states in 1 layer and 4,096 bytes of recurrent "
        "states in 1 layer: 11,264 bytes is all that is kept."
    )
    assert line in ended.printed
    table = ended.table("cache_inventory")
    assert table.groupby("analysed")["counted_bytes"].sum().tolist() == [6144, 5120]
    assert ended.manifest(mode)["cache"]["all_kept_bytes"] == 11264


@pytest.mark.parametrize("name", ["qwen3_next", "llama_gqa"])
def test_a_study_says_the_ratio_of_all_that_is_kept(folder_of, tmp_path, empty_cache, name):
    ended = done(
        tmp_path / "out",
        *of_mode("compare", folder_of(name), tmp_path / "out", "--methods", "int8"),
        *("--context_tokens", "80", "--score_tokens", "8", "--num_samples", "1", "--quick"),
    )
    assert ended.code == 0
    table = ended.table("compare/compare").set_index("family")
    held = pd.Series(ended.manifest("compare")["cache"]["not_analysed_bytes_as_held"]).sum()
    for row in table.itertuples():
        all_kept = (row.original_bytes + held) / (row.stored_bytes + held)
        assert row.ratio_of_all_kept == pytest.approx(all_kept)
    best = table.loc["int8"]
    said = f"{best.ratio:.2f} x of int8, is {best.ratio_of_all_kept:.2f} x of all that is kept."
    assert (said in ended.printed) == (name == "qwen3_next")
    assert ("cache_inventory.csv" in ended.files) and held == (name == "qwen3_next") * 6144


def test_the_size_of_a_cache_is_said_as_a_product():
    said = what_it_is(Inventory.of_cache(caches.alike()))
    assert said.endswith(
        "Here 4 layers x 3 KV heads x 8 dims x 2 x 16 bits = 384 bytes per token; 3,840 bytes at "
        "10 tokens."
    )
    mixed = what_it_is(Inventory.of_cache(caches.mixed()))
    assert "in layers that differ" in mixed and "with a window keep fewer" in mixed
    per_token = 2 * (2 * 16 + 3 * 32 + 32 + 16)
    assert f"{per_token} bytes per token" in mixed
