"""Pictures are checked by their artists, labels and values, and at awkward sizes."""

import math
import shutil
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from analysis.findings import key_findings
from analysis.magnitudes import magnitude_distribution
from analysis.measures import sweep
from analysis.sinks import sinks
from config import UsageError
from data.cache import KVCache
from tests import caches
from tests.drawn import ABOUT, OF_THE_ANALYSIS, is_within, made, texts_of
from tests.drawn import usual as usual_cache
from visualization.catalogue import PICTURES
from visualization.drawing import Drawing
from visualization.output import OutputFolder
from visualization.style import COLOURS, bin_width, binned, shown


def big(layers: int, heads: int, tokens: int, dims: int) -> KVCache:
    built = (caches.layer(i, heads, tokens, (dims, dims)) for i in range(layers))
    return caches.cache(*built, n_prompt=max(1, tokens - 5))


SIZES = {
    "usual": usual_cache,
    "unequal layers": lambda: KVCache(caches.mixed().layers, torch.arange(10), 8, "random"),
    "smallest": lambda: caches.cache(caches.layer(0, 1, 2, (2, 2)), n_prompt=1),
    "deep": lambda: big(80, 8, 12, 4),
    "many heads": lambda: big(4, 64, 12, 4),
    "long": lambda: big(2, 1, 8192, 4),
    "wide": lambda: big(2, 1, 12, 128),
}
# Beside the first three, what a picture could have too much of
AWKWARD = {
    "layers/": ("deep",),
    "heads/": ("deep", "many heads"),
    "tokens/": ("long",),
    "cache/": ("long", "wide"),
    "tokens/attention_sinks": ("deep",),
    "embeddings/": ("wide", "long"),
    "weight": ("wide",),
}
CASES = [(stem, size) for stem in OF_THE_ANALYSIS for size in list(SIZES)[:3]]
CASES += [
    (stem, size)
    for start, sizes in AWKWARD.items()
    for stem in OF_THE_ANALYSIS
    if stem.startswith(start)
    for size in sizes
]


@cache
def tables_of(size: str) -> dict[str, pd.DataFrame]:
    torch.manual_seed(0)
    return made(SIZES[size]())


@pytest.fixture
def usual():
    return tables_of("usual")


def test_every_documented_picture_has_a_table(usual):
    assert set(usual) == set(OF_THE_ANALYSIS)


@pytest.mark.parametrize(("stem", "size"), CASES)
def test_each_picture_keeps_within_its_figure_at_every_size_and_says_what_it_shows(stem, size):
    figure = PICTURES[stem](tables_of(size)[stem], ABOUT)
    assert is_within(figure)
    written = texts_of(figure)
    assert ABOUT in " ".join(written).replace("\n", " ")  # $ and all
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert any(ax.get_xlabel() or len(ax.get_xticklabels()) for ax in panels)
    assert any(ax.get_ylabel() for ax in panels)
    width, height = figure.get_size_inches()
    assert width <= 24 and height <= 24
    assert sum(len(ax.patches) + len(ax.texts) for ax in panels) < 1500  # no ten thousand bars


def test_layer_lines_are_the_tables_values_in_the_kinds_colours(usual):
    table = usual["layers/layer_statistics"]
    panel = PICTURES["layers/layer_statistics"](table, ABOUT).axes[2]
    for kind, line in zip(("key", "value"), panel.lines, strict=True):
        rows = table[table["kind"] == kind]
        np.testing.assert_allclose(line.get_ydata(), rows["std"])
        assert to_hex(line.get_color()) == COLOURS[kind]


def test_layer_bars_and_their_mean_lines(usual):
    table = usual["layers/layer_pruning_potential"]
    (ax,) = PICTURES["layers/layer_pruning_potential"](table, ABOUT).axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(list(table["sparsity"]))
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx(
        list(table.groupby("kind")["mean_sparsity"].first())
    )
    legend = " ".join(t.get_text() for t in ax.get_legend().get_texts())
    assert f"Keys: mean of layers {table['mean_sparsity'].iloc[0]:.1%}" in legend


def test_where_keys_and_values_differ_in_shape_the_panel_says_so():
    unequal = caches.cache(*(caches.layer(i, 1, 10, (8, 4)) for i in range(3)))
    figure = PICTURES["layers/layer_statistics"](made(unequal)["layers/layer_statistics"], ABOUT)
    assert any("differ in shape" in text for text in texts_of(figure))


def test_both_head_maps_share_one_scale_and_show_the_table(usual):
    table = usual["heads/head_sparsity"]
    keys, values, _bar = PICTURES["heads/head_sparsity"](table, ABOUT).axes
    assert keys.collections[0].get_clim() == values.collections[0].get_clim()
    cells = keys.collections[0].get_array().data.flatten()
    expected = table[table["kind"] == "key"].sort_values(["layer", "head"])["sparsity"]
    np.testing.assert_allclose(cells, 100 * expected)


def test_darker_is_sparser(usual):
    keys = PICTURES["heads/head_sparsity"](usual["heads/head_sparsity"], ABOUT).axes[0]
    light, dark = keys.collections[0].cmap([0.0, 1.0])[:, :3].sum(1)
    assert dark < light


def test_error_bars_are_the_deviation_over_layers(usual):
    table = usual["heads/head_pruning_potential"]
    (ax,) = PICTURES["heads/head_pruning_potential"](table, ABOUT).axes
    keys = table[table["kind"] == "key"]
    segments = ax.containers[0].lines[2][0].get_segments()
    lengths = [(end - start)[1] for start, end in segments]
    assert lengths == pytest.approx(list(2 * keys["sparsity_std"]))


def test_the_red_line_is_the_threshold_and_its_label_the_sparse_share(usual):
    table = usual["weight_magnitude_distribution"]
    figure = PICTURES["weight_magnitude_distribution"](table, ABOUT)
    for ax, kind in zip(figure.axes, ("key", "value"), strict=True):
        rows = table[table["kind"] == kind]
        assert ax.lines[0].get_xdata()[0] == rows["threshold"].iloc[0]
        left = rows.loc[rows["bin_right"] <= rows["threshold"], "count"].sum()
        assert f"{left / rows['count'].sum():.1%}" in ax.get_legend().get_texts()[0].get_text()
        assert ax.get_yscale() == "log"


def test_the_highest_tokens_are_marked_at_their_height_and_named(usual):
    table = usual["tokens/token_position_importance"]
    figure = PICTURES["tokens/token_position_importance"](table, ABOUT)
    over_positions, _, ranking = figure.axes
    top = table[table["well_seen"]].nlargest(10, "importance")
    marks = next(line for line in over_positions.lines if line.get_marker() == "v")
    np.testing.assert_allclose(marks.get_ydata(), top["importance"][:5])
    labels = [text.get_text() for text in ranking.get_yticklabels()]
    rows = enumerate(zip(top["position"], top["token"], strict=True), 1)
    assert labels == [f"{position}: {token}  #{rank}" for rank, (position, token) in rows]
    ends = [sum(bar.get_width() for bar in ranking.patches[i::10]) for i in range(10)]
    assert ends == pytest.approx(list(top["importance"]))  # of key, value and energy


def test_importance_is_drawn_from_its_median_to_the_highest_and_the_lowest(usual):
    table = usual["tokens/token_position_importance"]
    ax = PICTURES["tokens/token_position_importance"](table, ABOUT).axes[0]
    (high, _, base), (low, _, other) = (patch.get_data() for patch in ax.patches[:2])
    assert base == other == pytest.approx(table["importance"].median())
    values = table["importance"].to_numpy()
    np.testing.assert_allclose(high, values.clip(min=base))
    np.testing.assert_allclose(low, values.clip(max=base))


def with_sinks(*positions: int) -> dict[str, pd.DataFrame]:
    """Of a text of 200 tokens, of which these receive 20 times the even share."""
    held = big(2, 1, 200, 4)
    attention = torch.full((1, 200), 1e-3)
    even = made(held)["tokens/attention_sinks"].drop_duplicates("position")["even_share"]
    attention[0, list(positions)] = 20 * torch.tensor(even.to_numpy()[list(positions)]).float()
    attention[0, -1] = 0.99  # by itself alone
    return made(held, [attention] * 2)


@pytest.mark.parametrize("positions", [(), (9,), (20, 90, 30)])
def test_the_marks_of_sinks_are_those_that_sentences_name(positions):
    tables = with_sinks(*positions)
    named = sinks(tables["tokens/attention_sinks"])
    assert set(named["position"]) == set(positions)
    places = {"tokens/attention_sinks": "v", "tokens/token_position_importance": "D"}
    for stem, marker in places.items():
        ax = PICTURES[stem](tables[stem], ABOUT).axes[0]
        marked = [line.get_xdata() for line in ax.lines if line.get_marker() == marker]
        assert [set(x) for x in marked] == ([set(positions)] if positions else [])
    written = texts_of(PICTURES["tokens/attention_sinks"](tables["tokens/attention_sinks"], ABOUT))
    (listed,) = [text for text in written if "even" in text and "\n" in text]
    for position in positions:
        share = 20 * named.set_index("position").loc[position, "even_share"]
        assert f"{position}: ${position}\n    {share:.1%} = 20 × even" in listed
    assert listed.startswith("Sinks" if positions else "No sinks")
    (finding,) = [s for s in key_findings(tables, 0.8, 0.2, 5) if "ttention sinks" in s]
    assert finding.startswith("Attention sinks" if positions else "No attention sinks")


def test_a_lone_sink_is_visible_in_the_map_of_a_long_text():
    long = SIZES["long"]()
    attention = [torch.full((1, 8192), 1e-4) for _ in long.layers]
    attention[1][:, 5003] = 0.9
    table = made(long, attention)["tokens/attention_sinks"]
    heat_map = PICTURES["tokens/attention_sinks"](table, ABOUT).axes[1]
    cells = heat_map.images[0].get_array()
    assert cells.shape == (2, 512)
    assert cells[1, 5003 // 16] == pytest.approx(0.9) and cells[0].max() == pytest.approx(1e-4)


def test_tokens_from_the_right_turn_no_line_around(usual):
    """Drawn with the direction of each line, a position would stand behind its token."""
    table = usual["tokens/token_position_importance"].copy()
    table["token"] = "\u05e9\u05dc\u05d5\u05dd"
    about = "\u05e9\u05dc\u05d5\u05dd · a text · 10 tokens"
    figure = PICTURES["tokens/token_position_importance"](table, about)
    lines = [text.get_text().split("  #")[0] for text in figure.axes[2].get_yticklabels()]
    assert lines and all(line.endswith(": \u2068\u05e9\u05dc\u05d5\u05dd\u2069") for line in lines)
    assert "\u200e" + about in [text.get_text() for text in figure.texts]


def test_stage_bars_and_the_red_line_of_new_tokens(usual):
    table = usual["tokens/generation_stages_comparison"]
    figure = PICTURES["tokens/generation_stages_comparison"](table, ABOUT)
    for ax, kind in zip(figure.axes, ("key", "value"), strict=True):
        rows = table[table["kind"] == kind]
        assert [bar.get_height() for bar in ax.patches] == pytest.approx(list(rows["sparsity"]))
        red = ax.lines[0].get_ydata()
        np.testing.assert_allclose(red, rows["sparsity_new_tokens"])
        assert math.isnan(red[0])  # nothing is new in the prefill


def test_the_sparse_and_the_dense_line_are_labelled(usual):
    table = usual["embeddings/embedding_consistency"]
    for ax in PICTURES["embeddings/embedding_consistency"](table, ABOUT).axes:
        assert [line.get_ydata()[0] for line in ax.lines] == [0.8, 0.2]
        assert [t.get_text()[:3] for t in ax.get_legend().get_texts()] == ["80%", "20%"]


@pytest.mark.parametrize("generated", [0, 5])
def test_each_stage_names_the_tokens_that_its_bar_is_of(generated):
    held = caches.cache(
        *(caches.layer(i, 1, 30, (4, 4)) for i in range(2)), n_prompt=30 - generated
    )
    table = made(held)["tokens/generation_stages_comparison"]
    ax = PICTURES["tokens/generation_stages_comparison"](table, ABOUT).axes[0]
    labels = [" ".join(text.get_text().split()) for text in ax.get_xticklabels()]
    read = f"{30 - generated} of the text"
    more = [f" + {n} generated" for n in (1, 3, 5)] if generated else ["", "", ""]
    assert labels == [
        f"{stage} {read}{new}"
        for stage, new in zip(("prefill", "early", "mid", "late"), ["", *more], strict=True)
    ]
    legend = {text.get_text() for text in ax.get_legend().get_texts()}
    assert ("its generated tokens alone" in legend) == bool(generated)


def test_layers_have_ticks_where_there_are_layers_and_nowhere_else():
    for size in ("unequal layers", "deep"):
        tables = tables_of(size)
        for stem in ("layers/layer_statistics", "layers/layer_pruning_potential"):
            there = set(tables[stem]["layer"])
            for ax in PICTURES[stem](tables[stem], ABOUT).axes:
                ticks = {*ax.get_xticks()}
                assert ticks <= there and len(ticks) >= min(len(there), 10)
                assert (ax.get_xlim()[0], ax.get_xlim()[1]) > (min(there) - 1, max(there))


def test_the_threshold_of_sparsity_is_told_in_numbers(usual):
    table = usual["layers/layer_statistics"]
    ax = PICTURES["layers/layer_statistics"](table, ABOUT).axes[0]
    assert "below 1 % of the largest" in ax.get_title()
    limits = table.groupby("kind")["threshold"].first()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"Keys: below {limits['key']:.3g}", f"Values: below {limits['value']:.3g}"]


def test_mean_lines_stand_out_from_the_bars_that_they_cross(usual):
    stem = "layers/layer_pruning_potential"
    (ax,) = PICTURES[stem](usual[stem], ABOUT).axes
    bars = {to_hex(bar.get_facecolor()) for bar in ax.patches}
    for line in ax.lines:
        assert to_hex(line.get_color()) not in bars and line.get_path_effects()
        assert line.get_zorder() > max(bar.get_zorder() for bar in ax.patches)


@pytest.mark.parametrize("stem", ["heads/head_sparsity", "heads/pruning_heatmap_by_layer_head"])
def test_heat_maps_say_what_their_darkest_colour_stands_for(usual, stem):
    figure = PICTURES[stem](usual[stem], ABOUT)
    assert f"the largest: {usual[stem]['sparsity'].max():.1%}" in figure.axes[-1].get_ylabel()


def test_bars_of_magnitudes_are_all_as_wide_and_what_is_smaller_is_told():
    layer = caches.layer(0, 2, 9, (8, 8))
    layer.keys[0, 1, :3] = 0
    table = magnitude_distribution(sweep(caches.cache(layer), 1.0))
    figure = PICTURES["weight_magnitude_distribution"](table, ABOUT)
    values, edges, _ = figure.axes[0].patches[0].get_data()
    rows = table[table["kind"] == "key"]
    assert list(values) == list(rows["count"][1:]) and list(edges) == list(rows["bin_right"])
    assert np.ptp(np.diff(np.log2(edges))) < 0.05
    n = rows["count"].iloc[0]
    assert n >= 3 and f"← {n} ({n / rows['count'].sum():.2%}) are smaller" in texts_of(figure)


def test_dimensions_of_a_kind_share_one_scale(usual):
    stem = "embeddings/sparse_dense_embedding_patterns"
    figure = PICTURES[stem](usual[stem], ABOUT)
    for kind, column in (("key", figure.axes[0::2]), ("value", figure.axes[1::2])):
        limits = {ax.get_ylim() for ax in column}
        highest = usual[stem].loc[usual[stem]["kind"] == kind, "mean_abs"].max()
        assert len(limits) == 1 and limits.pop() == pytest.approx((0, 1.3 * highest))


def test_sensitive_dimensions_stand_above_invariant_ones(usual):
    table = usual["embeddings/sparse_dense_embedding_patterns"]
    figure = PICTURES["embeddings/sparse_dense_embedding_patterns"](table, ABOUT)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("Keys: most position-sensitive")
    assert titles[3].startswith("Values: most position-invariant")
    rows = table[(table["kind"] == "key") & (table["pattern"] == "sensitive")]
    first = rows[rows["dim"] == rows["dim"].iloc[0]]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), first["mean_abs"])


def test_binning_keeps_the_mean_the_maximum_and_the_places():
    positions, values = np.arange(10), np.arange(10.0) ** 2
    width = bin_width(10, 4)
    assert width == 3
    middles, means = binned(positions, values, width, "mean")
    assert list(middles) == [1, 4, 7, 10] and means[1] == pytest.approx((9 + 16 + 25) / 3)
    assert binned(positions, values, width, "max")[1][3] == 81
    assert bin_width(10, 10) == 1


def test_characters_that_the_font_lacks_are_escaped():
    assert shown("aé␣") == "aé␣"
    assert shown("\u4e2d") == "\\u4e2d"


def test_drawing_leaves_the_callers_settings_alone(usual):
    before = dict(matplotlib.rcParams)
    PICTURES["layers/layer_statistics"](usual["layers/layer_statistics"], ABOUT)
    assert dict(matplotlib.rcParams) == before


def test_nothing_has_its_final_name_before_the_commit(tmp_path, usual):
    stem = "layers/layer_statistics"
    with OutputFolder(tmp_path) as output, Drawing() as drawing:
        output.draw(drawing, stem, usual[stem], ABOUT)
        output.table(stem, usual[stem])
        assert not (tmp_path / "layers").exists()
        paths = output.commit("analyze.json", {"mode": "analyze"})
    assert [p.removeprefix(f"{tmp_path}/") for p in paths] == [
        "layers/layer_statistics.png",
        "layers/layer_statistics.csv",
        "analyze.json",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["analyze.json", "layers"]
    back = pd.read_csv(tmp_path / "layers/layer_statistics.csv")
    pd.testing.assert_frame_equal(back, usual[stem], check_dtype=False)


@pytest.mark.parametrize("obstacle", ["layers", "b.csv", "analyze.json"])
def test_a_target_that_cannot_be_replaced_is_noticed_before_any_is(tmp_path, usual, obstacle):
    table = usual["layers/layer_statistics"]
    with OutputFolder(tmp_path) as output:
        for stem in ("a", "b", "layers/c"):
            output.table(stem, table)
        output.commit("analyze.json", {})
    before = (tmp_path / "a.csv").read_text()
    if obstacle == "layers":
        shutil.rmtree(tmp_path / "layers")
        (tmp_path / "layers").write_text("in the way")
    else:
        (tmp_path / obstacle).unlink()
        (tmp_path / obstacle).mkdir()
    with pytest.raises(UsageError, match="earlier results were kept"), OutputFolder(tmp_path) as o:
        for stem in ("a", "b", "layers/c"):
            o.table(stem, table.head(1))
        o.commit("analyze.json", {})
    assert (tmp_path / "a.csv").read_text() == before


def test_the_share_left_of_the_threshold_is_the_sparsity_at_any_threshold():
    for seed in range(6):
        layers = (caches.layer(i, 2, 9, (8, 8), seed=seed) for i in range(2))
        swept = sweep(caches.cache(*layers), 3.0 + 5 * seed)
        table = magnitude_distribution(swept)
        figure = PICTURES["weight_magnitude_distribution"](table, ABOUT)
        for ax, kind in zip(figure.axes, ("key", "value"), strict=True):
            sums = swept.sums[kind]
            sparse = sum(s.below_head_dim.sum().item() for s in sums) / sum(
                s.n_entries for s in sums
            )
            assert f" {sparse:.1%} lie" in ax.get_legend().get_texts()[0].get_text()


def test_what_fails_leaves_earlier_results_and_no_litter(tmp_path, usual):
    (tmp_path / "a.csv").write_text("earlier")
    with pytest.raises(RuntimeError), OutputFolder(tmp_path) as output:
        output.table("a", usual["layers/layer_statistics"])
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "earlier"
