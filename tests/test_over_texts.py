"""Tables of several texts as one: means and standard errors, by a rule for each table."""

import re

import numpy as np
import pandas as pd
import pytest

from analysis import over_texts
from analysis.advice import recommendations
from analysis.findings import key_findings
from analysis.over_texts import OF_FIRST, OF_PLACES, RULES
from tests.several import one, over

N = 3
PLACES = "embeddings/sparse_dense_embedding_patterns"


def measured(stem: str, table: pd.DataFrame) -> list[str]:
    rule = RULES[stem]
    return [name for name in table if name not in (*rule.keys, *rule.same, *rule.sums)]


STEMS = sorted(stem for stem in one(0)[0] if RULES[stem] is not OF_FIRST)


def test_one_text_is_left_as_it_is():
    found, places = one(0)
    for stem, table in over_texts.combined([found], places).items():
        assert table is found[stem]
    assert over_texts.of_each([found], [0]) == {}


@pytest.mark.parametrize("stem", STEMS)
def test_copies_of_one_text_have_its_numbers_and_no_error(stem):
    alone, together = one(0)[0][stem], over(0, 0, 0)[stem]
    sums = RULES[stem].sums
    expected = alone.assign(**{name: alone[name] * N for name in sums})
    pd.testing.assert_frame_equal(together[list(alone)], expected, check_dtype=False, rtol=0)
    errors = together.filter(regex="_se$")
    assert (errors.fillna(0) == 0).all().all() and (together["texts"] == N).all()
    has_error = {f"{name}_se" for name in measured(stem, alone)}
    wanted = {"mean_abs_se", "variance_se"} if RULES[stem] is OF_PLACES else has_error
    assert set(errors) == wanted


@pytest.mark.parametrize("stem", STEMS)
def test_the_order_of_texts_does_not_matter(stem):
    rtol = 1e-12 if RULES[stem] is OF_PLACES else 0
    pd.testing.assert_frame_equal(over(0, 1, 2)[stem], over(2, 0, 1)[stem], rtol=rtol, atol=0)


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem != PLACES])
def test_means_and_errors_are_those_of_the_rows_of_each_text(stem):
    texts = [one(seed)[0] for seed in range(N)]
    rows = over_texts.of_each(texts, range(N))[f"{stem}_texts"]
    assert list(rows["index"].unique()) == list(range(N))
    together, rule = over(*range(N))[stem], RULES[stem]
    if "bin" in rule.keys:
        rows["bin"] = rows.groupby(["index", "kind"]).cumcount()
        together = together.assign(bin=together.groupby("kind").cumcount())
    groups = rows.groupby(list(rule.keys))
    together = together.set_index(list(rule.keys)).sort_index()
    for name in rule.sums:
        pd.testing.assert_series_equal(groups[name].sum(), together[name])
    for name in measured(stem, texts[0][stem]):
        values = rows.astype({name: float}).groupby(list(rule.keys))[name]
        tolerance = {
            "check_names": False,
            "check_dtype": False,
            "check_index_type": False,
            "rtol": 1e-5,
            "atol": 1e-7,
        }
        pd.testing.assert_series_equal(values.mean(), together[name], **tolerance)
        pd.testing.assert_series_equal(values.sem(), together[f"{name}_se"], **tolerance)


def test_patterns_are_of_the_dimensions_that_vary_most_on_the_mean():
    together = over(*range(N))
    variance = together[f"{PLACES}_variance"].set_index(["kind", "dim"])["variance"]
    parts = [one(seed)[1] for seed in range(N)]
    for (kind, pattern), rows in together[PLACES].groupby(["kind", "pattern"]):
        ranked = variance[kind].sort_values()
        best = ranked.index[4:] if pattern == "sensitive" else ranked.index[:4]  # of 8
        assert set(rows["dim"]) == set(best)
        for dim, of_dim in rows.groupby("dim"):
            each = np.stack([part.means[kind][:, dim] for part in parts])
            assert np.allclose(of_dim["mean_abs"], each.mean(0))
            assert np.allclose(of_dim["mean_abs_se"], each.std(0, ddof=1) / N**0.5)


def test_words_are_named_where_all_texts_have_the_same():
    table = over(0, 1)["tokens/token_position_importance"]
    assert table["token"][0] == "the" and table["token"][1:].isna().all()
    assert table["well_seen"].dtype == bool


def test_heads_stand_in_the_order_of_their_mean_similarity():
    table = over(0, 1)["similarity/head_similarity_matrix"]
    for _, rows in table.groupby("kind"):
        own = rows[(rows["layer_a"] == rows["layer_b"]) & (rows["head_a"] == rows["head_b"])]
        assert (
            sorted(own["order_a"]) == list(range(12)) and (own["order_a"] == own["order_b"]).all()
        )


def test_rows_that_only_some_texts_have_say_how_many():
    longer, shorter = ({"tucker/rank_sensitivity": ranks(n)} for n in (3, 2))
    for texts in ([longer, shorter], [shorter, longer]):
        table = over_texts.combined(texts)["tucker/rank_sensitivity"]
        assert list(table["token_rank"]) == [0, 1, 2] and list(table["texts"]) == [2, 2, 1]
        assert list(table["ratio"]) == [0, 1, 2] and list(table["ratio_se"].isna()) == [0, 0, 1]


def ranks(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"token_rank": range(n), "embedding_rank": 4, "ratio": map(float, range(n))}
    )


def test_a_table_without_a_rule_is_an_error_and_no_guess():
    text = {"new/table": pd.DataFrame({"x": [1.0]})}
    with pytest.raises(ValueError, match="no rule of how new/table"):
        over_texts.combined([text, text])


def test_texts_of_different_lengths_have_no_common_positions():
    with pytest.raises(ValueError, match="no common positions"):
        one(0)[1] + one(0, n_tokens=20)[1]


def test_what_is_said_of_copies_is_what_is_said_of_one_with_no_error():
    alone, together = one(0)[0], over(0, 0)
    means, *said = key_findings(together, 0.8, 0.2, 1)
    assert means.startswith("Numbers are means over 2 texts, ± their standard errors")
    for line, plain in zip(said, key_findings(alone, 0.8, 0.2, 1), strict=True):
        shorter = re.sub(r" ± 0\.0+%?|^Of the first text: ", "", line)
        assert shorter == plain
    assert recommendations(together, 0.8) == recommendations(alone, 0.8)


@pytest.mark.parametrize(
    ("error", "said"), [(0.001, ""), (0.1, "(within the errors, 3 others too)")]
)
def test_a_superlative_says_whether_its_interval_parts_from_others(error, said):
    table = over(0, 1)["layers/layer_statistics"]
    shares = 0.5 - 0.01 * table["layer"]
    table = table.assign(sparsity=shares, sparsity_se=error)
    first = key_findings({"layers/layer_statistics": table}, 0.8, 0.2, 1)[1]
    assert first.startswith("Sparsest layers by keys: 0 (50.0% ± ")
    assert first.endswith(f" {said}." if said else "%).")


def test_of_the_first_text_alone_are_only_tables_that_cannot_be_averaged():
    assert {s for s, rule in RULES.items() if rule is OF_FIRST} == {
        "cache_inventory",
        "cache/norms_in_time",
        "cache/keys",
        "cache/values",
        "tokens/attended_text",
        "tucker/tucker_components",
    }
    first = pd.DataFrame({"value": [1.0]})
    texts = [{"tucker/tucker_components": first}, {"tucker/tucker_components": first + 1}]
    assert over_texts.combined(texts)["tucker/tucker_components"] is first
    assert over_texts.of_each(texts, [0, 1]) == {}


def test_a_table_that_only_the_first_text_has_stays_as_it_is():
    table = pd.DataFrame({"dim_0": [1.0]})
    assert over_texts.combined([{"cache/keys": table}, {}])["cache/keys"] is table


def test_adding_up_places_is_the_same_in_any_grouping():
    a, b, c = (one(seed)[1] for seed in range(3))
    left, right = (a + b) + c, a + (b + c)
    for kind in ("key", "value"):
        assert np.allclose(left.means[kind], right.means[kind], rtol=1e-13)
        assert np.allclose(left.error(kind), right.error(kind), rtol=1e-10)
    assert left.texts == right.texts == 3
