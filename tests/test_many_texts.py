"""Several texts from end to end: what the modes write of them, and how it is drawn."""

import json

import numpy as np
import pandas as pd
import pytest

import config
from analysis.over_texts import OF_FIRST, RULES
from compression.studies.analyze import Analysis
from config import UsageError
from data.texts import Sample
from tests import families
from tests.commands import PROMPT, done, of_mode
from tests.drawn import ABOUT, OF_THE_ANALYSIS, is_within, texts_of
from tests.several import over
from visualization.catalogue import PICTURES
from visualization.style import COLOURS

SHORT = {
    "analyze": ["--context_tokens", "60", "--new_tokens", "5"],
    "analyze_generation": ["--new_tokens", "5"],
    "analyze_similarity": ["--context_tokens", "60", "--score_tokens", "4"],
    "tucker": [
        *("--context_tokens", "60", "--score_tokens", "4", "--token_rank", "4"),
        *("--embedding_rank", "4", "--recent_tokens", "4"),
    ],
}
OF_ROWS = ("similarity/texts", "similarity/potential_savings", "tucker/texts", "tucker/summary")
WHICH = ["text_index", "text_title"]
ONCE = ["model", "text_source", *WHICH]
OF_RUN = ["own"]  # said of the run once more than of each text


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A folder with three copies of a text, and one with texts that differ."""
    alike, apart = (tmp_path_factory.mktemp(name) for name in ("alike", "apart"))
    for i in range(3):
        (alike / f"{i}.txt").write_text(PROMPT)
        (apart / f"{i}.txt").write_text(PROMPT[20 * i :] + f"{i}" * i)
    return {"alike": alike, "apart": apart}


@pytest.fixture(scope="module")
def read(tiny_model, tmp_path_factory, corpora, shared_cache):
    kept = {}

    def go(mode: str, corpus: str, n: int):
        if (mode, corpus, n) not in kept:
            out = tmp_path_factory.mktemp(mode) / "out"
            texts = ["--text_file", str(corpora[corpus]), "--num_samples", str(n)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(config, "TOKEN_RANKS", (2, 4))
                patch.setattr(config, "EMBEDDING_RANKS", (4,))
                arguments = of_mode(mode, tiny_model, out, *texts, *SHORT[mode])
                kept[mode, corpus, n] = done(out, *arguments)
        return kept[mode, corpus, n]

    return go


def stems(run) -> set[str]:
    return {file.removesuffix(".csv") for file in run.files if file.endswith(".csv")}


@pytest.mark.parametrize("mode", SHORT)
def test_every_table_of_several_texts_has_a_rule_and_the_rows_of_each_text(read, mode):
    single, several = read(mode, "apart", 1), read(mode, "apart", 3)
    assert single.code == several.code == 0
    assert stems(single) <= {*RULES, *OF_ROWS}
    averaged = {s for s in stems(single) - set(OF_ROWS) if RULES[s] is not OF_FIRST}
    assert stems(several) == stems(single) | {f"{stem}_texts" for stem in averaged}
    for stem in averaged:
        alone = single.table(stem).drop(columns=OF_RUN, errors="ignore")
        columns = list(alone.drop(columns=ONCE))
        assert set(columns) <= set(several.table(stem))
        rows = several.table(f"{stem}_texts")
        assert list(rows)[1 : len(columns) + 1] == columns and set(rows["index"]) == {0, 1, 2}
        first = rows[rows["index"] == 0].drop(columns="index").reset_index(drop=True)
        pd.testing.assert_frame_equal(first, alone.drop(columns=WHICH), check_dtype=False)
        assert (alone[WHICH] == ["#0", "0.txt"]).all(axis=None)
        together = several.table(stem)[WHICH]
        assert (together == ["#0 to #2", "3 texts together"]).all(axis=None)


@pytest.mark.parametrize("mode", SHORT)
def test_copies_of_a_text_give_its_numbers_and_no_errors(read, mode):
    single, several = read(mode, "alike", 1), read(mode, "alike", 3)
    for stem in stems(single) - set(OF_ROWS):
        if RULES[stem] is OF_FIRST:
            continue
        alone, together = single.table(stem).drop(columns=WHICH), several.table(stem)
        for name in RULES[stem].sums:
            alone[name] *= 3
        pd.testing.assert_frame_equal(together[list(alone)], alone, check_dtype=False)
        assert (together.filter(regex="_se$").fillna(0) == 0).all().all()


def test_texts_of_different_lengths_have_stages_at_their_mean_length(read):
    run = read("analyze_generation", "apart", 3)
    stages = run.table("tokens/generation_stages_comparison")
    each = run.table("tokens/generation_stages_comparison_texts")
    assert (
        each["n_tokens"].nunique() > 4
        and stages["n_tokens"][0]
        == each[(each["stage"] == "prefill") & (each["kind"] == "key")]["n_tokens"].mean()
    )


def test_results_say_which_texts_and_how_many_tokens_they_rest_on(read):
    run = read("analyze", "apart", 3)
    manifest = run.manifest("analyze")
    assert [text["title"] for text in manifest["texts"]] == ["0.txt", "1.txt", "2.txt"]
    assert len({text["sha256"] for text in manifest["texts"]}) == 3
    assert manifest["tokens_read"] == 180 == sum(t["tokens_read"] for t in manifest["texts"])
    assert manifest["text"] == manifest["texts"][0]
    assert "3 texts, 180 tokens in all:" in run.printed.splitlines()[0]
    assert "1 text of 60 tokens:" in read("analyze", "apart", 1).printed.splitlines()[0]
    assert json.dumps(manifest["thresholds"])


def test_one_cache_is_held_at_a_time(monkeypatch):
    """Whatever the number of texts: each is gone when the next is prefilled."""
    import gc
    import weakref

    from data import extraction

    held, prefill = [], extraction.prefill

    def watched(*args, **kw):
        gc.collect()
        assert not any(ref() is not None for ref in held)
        start = prefill(*args, **kw)
        held.append(weakref.ref(start.cache))
        return start

    monkeypatch.setattr(extraction, "prefill", watched)
    texts = [Sample(i, f"{i}", "made up", PROMPT[i:]) for i in range(3)]
    Analysis(context_tokens=60, num_samples=3).run(families.loaded("llama_gqa"), texts)
    assert len(held) == 3


def test_measuring_over_several_texts_is_refused_with_the_mode_that_does():
    with pytest.raises(UsageError, match=r"`measure` was given for 2 texts, .*--mode prune"):
        Analysis(measure=True, num_samples=2)


MEANS = over(0, 1, 2)


DRAWN = sorted(stem for stem in set(MEANS) & set(PICTURES) if RULES[stem] is not OF_FIRST)


@pytest.mark.parametrize("stem", DRAWN)
def test_a_picture_of_several_texts_keeps_within_its_figure(stem):
    figure = PICTURES[stem](MEANS[stem], ABOUT)
    assert is_within(figure)
    heat_maps = ("similarity/", "heads/head_sparsity", "heads/pruning_heatmap", "weight_magnitude")
    written = " ".join(texts_of(figure))
    assert stem.startswith(heat_maps) or "± standard error over 3 texts" in written
    assert stem in OF_THE_ANALYSIS or stem.startswith("similarity/")


def test_bands_are_a_standard_error_to_both_sides_of_the_mean():
    table = MEANS["layers/layer_statistics"]
    keys = table[table["kind"] == "key"]
    ax = PICTURES["layers/layer_statistics"](table, ABOUT).axes[0]
    blue = next(c for c in ax.collections if len(c.get_paths()[0].vertices) > 3)
    corners = blue.get_paths()[0].vertices
    for _, row in keys.iterrows():
        at = corners[corners[:, 0] == row["layer"], 1]
        assert np.isclose(at.max(), row["sparsity"] + row["sparsity_se"])
        assert np.isclose(at.min(), row["sparsity"] - row["sparsity_se"])
    assert COLOURS["key"]


def test_counts_of_several_texts_are_drawn_in_multiples_of_their_thresholds():
    table = MEANS["weight_magnitude_distribution"]
    figure = PICTURES["weight_magnitude_distribution"](table, ABOUT)
    ax = figure.axes[0]
    keys = table[table["kind"] == "key"]
    values, edges, _ = ax.patches[0].get_data()
    assert list(values) == list(keys["count"][1:])
    assert np.isclose(edges, 1).any()
    below = keys["count"].iloc[0] + values[: int(np.isclose(edges, 1).argmax())].sum()
    share = below / keys["count"].sum()
    assert f"{share:.1%} lie to its left" in " ".join(texts_of(figure))
