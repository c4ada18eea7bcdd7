"""Pictures in each format: named after it, the same bytes each time, small where they are dense."""

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from data.vocabulary import PICTURE_FORMATS
from tests import drawn
from tests.commands import ROOT, files_below, run
from visualization import picture_files, style
from visualization.catalogue import PICTURES

STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
DRAW = """if True:
    import sys
    import pandas as pd
    from visualization.drawing import Drawing
    stem, table, *paths = sys.argv[1:]
    with Drawing() as drawing:
        for path in paths:
            drawing.submit(stem, pd.read_csv(table), "about $a_b$ \\u00e9", path)
"""


@pytest.fixture(scope="module")
def usual():
    return drawn.made(drawn.usual())


@pytest.mark.parametrize("picture_format", PICTURE_FORMATS)
def test_all_pictures_of_a_run_are_in_the_format_that_was_asked_for(
    flags, tmp_path, monkeypatch, picture_format
):
    asked = ["--analysis_focus", "heads", "--format", picture_format]
    assert run(*flags, *asked) == 0
    pictures = {file for file in files_below(tmp_path / "out") if file.startswith("heads/")}
    stems = {stem for stem in PICTURES if stem.startswith("heads/")}
    assert pictures == {f"{stem}.{end}" for stem in stems for end in (picture_format, "csv")}
    for stem in stems:
        content = (tmp_path / "out" / f"{stem}.{picture_format}").read_bytes()
        assert content.startswith(STARTS[picture_format])


def test_the_usual_format_stands_in_config(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("config.FIGURE_FORMAT", "svg")
    assert run(*flags, "--analysis_focus", "layers") == 0
    endings = {file.rpartition(".")[2] for file in files_below(tmp_path / "out")}
    assert endings == {"svg", "csv", "json", "html"}


def test_a_text_that_a_picture_would_replace_is_refused_in_its_format_alone(
    flags, tmp_path, capsys
):
    text = tmp_path / "out/layers/layer_statistics.svg"
    text.parent.mkdir(parents=True)
    text.write_text("A text. " * 20)
    at = flags.index("--prompt")
    typed = [*flags[:at], *flags[at + 2 :], "--text_file", str(text), "--analysis_focus", "layers"]
    assert run(*typed, "--format", "svg") == 2
    assert "would be replaced by a result" in capsys.readouterr().err
    assert run(*typed, "--format", "pdf") == 0
    assert text.read_text() == "A text. " * 20


def test_the_same_run_gives_the_same_bytes(usual, tmp_path):
    stem = "heads/pruning_heatmap_by_layer_head"
    usual[stem].to_csv(tmp_path / "table.csv", index=False)
    for name, seed in (("one", "1"), ("other", "2")):
        paths = [str(tmp_path / f"{name}.{ending}") for ending in PICTURE_FORMATS]
        command = [sys.executable, "-c", DRAW, stem, str(tmp_path / "table.csv"), *paths]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC+{seed}"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    for ending in PICTURE_FORMATS:
        one, other = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "other"))
        assert one == other, ending
    svg = (tmp_path / "one.svg").read_text()
    assert "<dc:date>" not in svg and b"/CreationDate" not in (tmp_path / "one.pdf").read_bytes()


def test_an_svg_needs_no_font_and_nothing_from_elsewhere(usual, tmp_path):
    for stem in ("heads/pruning_heatmap_by_layer_head", "tokens/token_position_importance"):
        file = tmp_path / "a.svg"
        picture_files.save(PICTURES[stem](usual[stem], drawn.ABOUT), file)
        for element in ElementTree.parse(file).iter():
            assert not element.tag.endswith("}text")
            for name, value in element.attrib.items():
                inside = value.startswith(("#", "data:image/png"))
                assert not name.endswith("href") or inside, value


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_dense_parts_are_pixels_and_others_are_shapes(tmp_path, ending):
    """As many cells as 80 layers of 64 heads have, which as shapes would take megabytes."""
    sizes = {}
    for n in (10, 72):
        figure, ax = style.figure("A title", "about", (6, 5))
        ax.pcolormesh(np.random.default_rng(0).random((n, n)))
        sizes[n] = tmp_path / f"{n}.{ending}"
        picture_files.save(figure, sizes[n])
    few, many = (sizes[n].read_bytes() for n in (10, 72))
    image = {"svg": rb"<image", "pdf": rb"/Subtype /Image"}[ending]
    assert not re.search(image, few) and re.search(image, many)
    assert len(many) < 300_000


def test_a_part_that_was_made_pixels_where_it_was_drawn_stays_so(tmp_path):
    figure = Figure()
    figure.subplots().scatter([0, 1], [0, 1], rasterized=True)
    picture_files.save(figure, tmp_path / "a.svg")
    assert "<image" in (tmp_path / "a.svg").read_text()


def test_every_picture_of_an_analysis_can_be_drawn_in_each_format(usual, tmp_path):
    for stem in drawn.OF_THE_ANALYSIS:
        figure = PICTURES[stem](usual[stem], drawn.ABOUT)
        for ending in ("pdf", "svg"):
            file = tmp_path / f"a.{ending}"
            picture_files.save(figure, file)
            assert file.read_bytes().startswith(STARTS[ending]), stem
            assert file.stat().st_size < 2**21, stem


def test_a_notebook_still_shows_png():
    figure, _ = style.figure("A title", "about", (3, 3))
    assert figure._repr_png_().startswith(STARTS["png"])
