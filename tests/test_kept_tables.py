"""Finished looks at a text are kept exactly, taken again, and believed only where they fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import config
from compression import sealed
from compression.studies.analyze import Analysis
from compression.studies.base import Tables
from compression.studies.kept_tables import Kept
from compression.studies.run import carry_out
from compression.studies.similarity import SimilarityStudy
from compression.studies.stored_tables import restored, stored
from compression.studies.tucker import TuckerStudy
from compression.studies.work import Here
from data import extraction
from data.corpora import reference_samples
from data.texts import Sample
from tests import families
from tests.commands import PROMPT, done, of_mode

TEXTS = [Sample(i, str(i), "of a test", f"{PROMPT[7 * i :]} {i}") for i in range(3)]
ANALYSIS = Analysis(context_tokens=60, new_tokens=4, num_samples=3)
LENGTHS = {"context_tokens": 80, "score_tokens": 4, "num_samples": 3}


@pytest.fixture
def reads(monkeypatch) -> list:
    """One entry per prefill; a prefill of which it holds as many as `reads.most` interrupts."""

    class Reads(list):
        most = 1000

    genuine, counted = extraction.prefill, Reads()

    def prefill(*a, **k):
        if len(counted) == counted.most:
            raise KeyboardInterrupt
        counted.append(a)
        return genuine(*a, **k)

    monkeypatch.setattr(extraction, "prefill", prefill)
    return counted


def work() -> Here:
    return Here(families.loaded("llama_gqa"))


def are_equal(some: Tables, others: Tables) -> bool:
    assert list(some) == list(others)
    for stem, table in some.items():
        pd.testing.assert_frame_equal(table, others[stem], check_exact=True)
    return True


def test_an_interrupted_analysis_goes_on_with_the_texts_that_it_has_not_read(
    empty_cache, reads, monkeypatch
):
    monkeypatch.setenv("KV_CACHE_HOME", str(empty_cache / "other"))
    alone = ANALYSIS.carry_out(work(), TEXTS)
    monkeypatch.setenv("KV_CACHE_HOME", str(empty_cache))
    reads.clear()
    reads.most = 2
    with pytest.raises(KeyboardInterrupt):
        ANALYSIS.carry_out(work(), TEXTS)
    reads.clear()
    resumed = ANALYSIS.carry_out(work(), TEXTS)
    assert len(reads) == 1
    again = ANALYSIS.carry_out(work(), TEXTS)
    assert len(reads) == 1
    for found in (resumed, again):
        assert are_equal(alone.tables, found.tables)
        assert replace(alone, tables={}) == replace(found, tables={})
        assert alone.contents == found.contents and len(found.contents) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"analysis_focus": "generation"},
        {"context_tokens": 61},
        {"new_tokens": 5},
    ],
)
def test_what_is_asked_otherwise_is_looked_at_anew(empty_cache, reads, changed):
    ANALYSIS.carry_out(work(), TEXTS)
    reads.clear()
    replace(ANALYSIS, **changed).carry_out(work(), TEXTS)
    assert len(reads) == 3


def test_another_constant_or_text_is_looked_at_anew(empty_cache, reads, monkeypatch):
    ANALYSIS.carry_out(work(), TEXTS)
    monkeypatch.setattr(config, "SPARSITY_THRESHOLD_PERCENTAGE", 3.0)
    ANALYSIS.carry_out(work(), TEXTS)
    assert len(reads) == 6
    others = [replace(TEXTS[0], text=PROMPT[50:]), *TEXTS[1:]]
    ANALYSIS.carry_out(work(), others)
    assert len(reads) == 7


def test_of_a_single_text_nothing_is_kept(empty_cache):
    replace(ANALYSIS, num_samples=1).carry_out(work(), TEXTS)
    assert not (empty_cache / "tables").exists()


def test_unknown_sums_are_not_kept():
    one = next(_looks(1))
    assert one.to_kept() is not None
    assert replace(one, sums={"spectrum": object()}).to_kept() is None


def _looks(n: int):
    asked = replace(ANALYSIS, num_samples=n)
    texts = [(text, families.token_ids(60, seed=text.index)) for text in TEXTS[:n]]
    tasks = [replace(asked._task(t, True), told_by_token=not i) for i, t in enumerate(texts)]
    return (one for _, one in work().as_done(tasks, "text"))


@pytest.mark.parametrize(
    "study",
    [
        TuckerStudy(**LENGTHS, token_rank=8, embedding_rank=8, recent_tokens=4),
        SimilarityStudy(**LENGTHS),
    ],
    ids=["tucker", "similarity"],
)
def test_a_study_that_is_repeated_reads_its_first_text_alone(empty_cache, reads, study):
    once = carry_out(study, work(), reference_samples())
    reads.clear()
    again = carry_out(study, work(), reference_samples())
    assert len(reads) == 1 and are_equal(once.report.tables, again.report.tables)
    assert once.report.lines == again.report.lines
    two = replace(study, num_samples=2)  # of which what is seen is the same
    reads.clear()
    carry_out(two, work(), reference_samples())
    assert len(reads) == 1


def test_damaged_files_are_looked_at_anew_with_one_notice_each(
    empty_cache, reads, tiny_model, tmp_path, capsys
):
    for text in TEXTS:
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{text.index}.txt").write_text(text.text)
    flags = ["--text_file", str(tmp_path / "texts"), "--num_samples", "3"]
    flags += ["--context_tokens", "60", "--new_tokens", "4"]

    def run(name: str):
        reads.clear()
        capsys.readouterr()
        out = tmp_path / name
        return done(out, *of_mode("analyze", tiny_model, out, *flags))

    once = run("once")
    files = sorted((empty_cache / "tables").iterdir())
    assert once.code == 0 and len(files) == len(reads) == 3
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files[1].write_bytes(files[2].read_bytes())
    again = run("again")
    assert again.code == 0 and len(reads) == 2
    said = again.said
    assert [said.count(file.name) for file in files] == [1, 1, 0]
    for stem in (file.removesuffix(".csv") for file in once.files if file.endswith(".csv")):
        pd.testing.assert_frame_equal(once.table(stem), again.table(stem))
    assert "tables" not in run("third").said and not reads


FORGED = [
    {"tables": "[]"},
    {"tables": '{"../../up": {"rows": 0, "columns": {}}}'},
    {"tables": '{"layers/layer_statistics": {"rows": 0, "columns": {}}}'},
    {"tables": '{"cache_inventory": 7}'},
    {"tables": "{}", "words": "[]"},
    {"tables": "{}", "words": "{"},
    {"tables": "{}", "words": '{"inventory": {}, "thresholds": {"key": 1.0, "value": 1.0}}'},
    {"words": "[" * 100_000},
    {"format": "row 1"},
    {"key": "0"},
]


@pytest.mark.parametrize("forged", FORGED, ids=map(str, range(len(FORGED))))
def test_a_sealed_file_of_another_shape_is_looked_at_anew(empty_cache, reads, caplog, forged):
    once = ANALYSIS.carry_out(work(), TEXTS)
    file = sorted((empty_cache / "tables").iterdir())[0]
    tensors, header = sealed.read(file)
    sealed.write(file, tensors, header | forged)
    caplog.clear()
    reads.clear()
    again = ANALYSIS.carry_out(work(), TEXTS)
    assert len(reads) == 1 and len(caplog.messages) == 1 and str(file) in caplog.text
    for stem, table in once.tables.items():  # sums are added up in another order
        pd.testing.assert_frame_equal(table, again.tables[stem], rtol=1e-12)


def test_a_folder_that_cannot_be_written_keeps_nothing_and_loses_nothing(empty_cache, reads):
    empty_cache.write_text("a file in the way")
    for _ in range(2):
        assert ANALYSIS.carry_out(work(), TEXTS).tables
    assert len(reads) == 6


def awkward() -> pd.DataFrame:
    odd = np.array([0x7FF8000000000001, 0xFFF0000000000000, 1], np.uint64).view(np.float64)
    return pd.DataFrame(
        {
            "float": odd,
            "narrow": np.array([0.1, np.nan, -0.0], np.float32),
            "whole": [2**62 + 1, -1, 0],
            "yes": [True, False, True],
            "word": pd.Series(["\N{SNOWMAN}\n", None, ""], dtype="str"),
            "layer": pd.Series([1, None, 3], dtype="Int64"),
            "mixed": pd.Series(["a", None, 7], dtype=object),
            "none": pd.Series([None] * 3, dtype=object),
        }
    )


@pytest.mark.parametrize("rows", [3, 1, 0])
def test_a_table_comes_back_to_the_bit(rows, tmp_path):
    table = awkward()[:rows]
    words, tensors = stored(table, "t")
    sealed.write(tmp_path / "file", tensors, {})
    tensors, _ = sealed.read(tmp_path / "file")
    back = restored(words, tensors, "t")
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    assert not tensors
    for name in ("float", "narrow"):
        assert back[name].to_numpy().tobytes() == table[name].to_numpy().tobytes()


def test_a_table_that_would_not_come_back_is_refused():
    for table in (
        awkward()[1:],
        pd.DataFrame({"list": [[1]]}),
        pd.DataFrame({"short": np.zeros(2, np.int16)}),
    ):
        with pytest.raises(ValueError):
            stored(table, "t")


def test_columns_that_do_not_fit_are_refused():
    words, tensors = stored(awkward(), "t")
    columns = words["columns"]
    wrong = [
        {"rows": 2, "columns": columns},
        {"rows": True, "columns": {"yes": {"dtype": "object", "values": []}}},
        {"rows": 3, "columns": columns | {"word": {"dtype": "str", "values": ["one"]}}},
        {"rows": 3, "columns": columns | {"layer": {"dtype": "Int64", "values": ["a", 1, 2]}}},
        {"rows": 3, "columns": columns | {"layer": {"dtype": "Int64", "values": [2**70, 1, 2]}}},
        {"rows": 3, "columns": columns | {"mixed": {"dtype": "object", "values": [[], 1, 2]}}},
        {"rows": 3, "columns": columns | {"other": {}}},
        {"rows": 2**70, "columns": {}},
    ]
    for each in wrong:
        with pytest.raises(ValueError):
            restored(each, dict(tensors), "t")


def test_what_is_kept_of_a_look_gives_the_look_again():
    for place, one in enumerate(_looks(2)):
        back = type(one).of_kept(one.to_kept())
        assert are_equal(one.tables, back.tables)
        assert (one.thresholds, one.inventory) == (back.thresholds, back.inventory)
        told = [x.attention for x in (one, back)]
        assert [x is None for x in told] == [place > 0] * 2  # of the first text alone
        if told[0] is not None:
            assert told[0].layers == told[1].layers
            for name, tensor in told[0].tensors.items():
                assert tensor.dtype == told[1].tensors[name].dtype
                assert torch.equal(tensor.nan_to_num(9), told[1].tensors[name].nan_to_num(9))
        added = [x.sums["by_position"] for x in (one, back)]
        assert added[0].positions.dtype == added[1].positions.dtype
        for field in ("means", "squares"):
            for kind, x in getattr(added[0], field).items():
                assert np.array_equal(x, getattr(added[1], field)[kind])
        kept = one.to_kept()
        with pytest.raises(ValueError):
            type(one).of_kept(Kept(kept.tables, kept.tensors | {"x": torch.ones(1)}, kept.words))
