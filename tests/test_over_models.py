"""One study on several models: each in its folder, one table and picture of all, and none that
fails costs the others anything."""

import shutil

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from compression.studies.over_models import TABLE, apart, each_alone
from config import UsageError
from tests import commands

SMALL = ("--context_tokens", "100", "--score_tokens", "8", "--num_samples", "2")
NAMES = ("llama_gqa", "gemma2")
SCORES = ["method", "settings", "bits_per_value", "kl_mean_nats"]


def compare(models: list[str], out) -> commands.Done:
    """The models compared in one run."""
    given = ["--mode", "compare", "--methods", "int8,kivi", "--quick", *SMALL, "--device", "cpu"]
    given += ["--no-use_wikitext", "--models", ",".join(models), "--output_dir", str(out)]
    return commands.done(out, *given)


@pytest.fixture(scope="module")
def both(folder_of, tmp_path_factory, shared_cache):
    return compare([folder_of(name) for name in NAMES], tmp_path_factory.mktemp("both"))


def test_the_table_holds_what_each_model_gives_in_their_order(both, folder_of, tmp_path):
    assert both.code == 0, both.said
    table = both.table(TABLE)
    assert list(dict.fromkeys(table["model"])) == [*NAMES]
    for name in NAMES:
        rows = table[table["model"] == name].reset_index(drop=True)
        alone = compare([folder_of(name)], tmp_path / name).table(TABLE)
        assert len(rows) > 3
        assert_frame_equal(rows[SCORES], alone[SCORES])


def test_each_model_has_a_folder_and_all_have_a_picture(both):
    for name in NAMES:
        assert f"models/{name}/compare.json" in both.files
        assert [file for file in both.files if file.startswith(f"models/{name}/compare/")]
    assert (both.out / f"{TABLE}.png").read_bytes().startswith(b"\x89PNG")
    assert both.manifest("compare")["settings"]["models"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_that_fails_does_not_cost_the_others(both, folder_of, tmp_path, place):
    broken = tmp_path / "broken"
    shutil.copytree(folder_of("gemma2"), broken)
    (broken / "model.safetensors").write_bytes(b"")
    models = [folder_of("llama_gqa")]
    models.insert(place, str(broken))
    done = compare(models, tmp_path / "out")
    sentence = done.said.strip().split("\n")[-1]
    assert done.code == 2 and "broken" in sentence and "--models" in sentence
    expected = both.table(TABLE).query("model == 'llama_gqa'")[SCORES].reset_index(drop=True)
    assert_frame_equal(done.table(TABLE)[SCORES], expected)
    assert "models/llama_gqa/compare.json" in done.files
    assert not any(file.startswith("models/broken/") for file in done.files)


def test_where_every_model_fails_there_is_just_the_refusal(folder_of, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder_of("gemma2"), broken)
    (broken / "model.safetensors").write_bytes(b"")
    done = compare([str(broken)], tmp_path / "out")
    assert done.code == 2 and done.said.count("\n") == 1 and not done.files


def test_refusals_of_several_are_told_together_and_a_fault_is_not_hidden():
    def carry_out(one):
        if one["model"] == "c":
            return pd.DataFrame()
        raise UsageError(f"{one['model']} will not do", "give another")

    outcomes, refused = each_alone([{"model": name} for name in "abc"], carry_out)
    assert len(outcomes) == 1 and str(refused).count("give another") == 1
    assert "a (a will not do); b (b will not do)" in str(refused)
    with pytest.raises(UsageError, match=r"^a will not do: give another\.$"):
        each_alone([{"model": name} for name in "ab"], carry_out)
    with pytest.raises(KeyError):
        each_alone([{"model": "a"}], lambda one: one["nothing"])


def test_models_are_told_apart_by_what_they_are(folder_of, tmp_path, monkeypatch):
    here = folder_of("gemma2")
    (tmp_path / "other").mkdir()
    shutil.copytree(here, tmp_path / "other" / "gemma2")
    each = apart([here, str(tmp_path / "other" / "gemma2")], "out")
    assert len({one["output_dir"] for one in each}) == 2
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UsageError, match=r"`models` names \./gemma2 twice"):
        apart(["gemma2", "./gemma2"], "out")
    for name in ("a", "b"):
        (tmp_path / "other" / f"{name}.gguf").touch()
    assert len(apart(["a.gguf", "b.gguf"], "out")) == 2
    with pytest.raises(UsageError, match="`models` nowhere/at/all does not exist"):
        apart(["gemma2", "nowhere/at/all"], "out")


def test_models_of_one_name_stay_apart_in_the_table(folder_of, tmp_path):
    other = tmp_path / "other" / "llama_gqa"
    shutil.copytree(folder_of("llama_gqa"), other)
    done = compare([folder_of("llama_gqa"), str(other)], tmp_path / "out")
    assert done.code == 0, done.said
    models = done.table(TABLE)["model"]
    assert models.value_counts().nunique() == 1
    assert list(dict.fromkeys(models)) == ["llama_gqa", "llama_gqa (2)"]
