"""What rows are kept under, and when two models are the same."""

import os
import shutil
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from compression import sealed
from compression.base import Uncompressed
from compression.evaluate import LEDGER, TOKEN_BITS, TOKENS, Judge, Scored
from compression.methods.dimensions import PCA
from compression.methods.evictions import KeyNorm
from compression.studies.rows import Rows
from compression.studies.run import carry_out
from compression.studies.tucker import TuckerStudy
from compression.studies.work import Here
from data import scored_texts
from data.corpora import reference_samples
from data.extraction import prefill
from data.models import load
from tests import families


def somewhere(identity: str = "model", *reading: object) -> SimpleNamespace:
    """As much of a loaded model as rows are kept under."""
    return SimpleNamespace(identity=identity, reading=lambda n_tokens: ["cpu", n_tokens, *reading])


def test_rows_are_kept_by_all_that_they_depend_on(empty_cache):
    ids = torch.arange(9)
    rows = Rows(somewhere(), ids, 5)
    one, other = PCA(0.5), PCA(0.25)
    assert rows.get(one) is None
    rows.put(one, Scored({"kl": 0.5}))
    assert rows.get(one) == Scored({"kl": 0.5}) and rows.get(other) is None
    for elsewhere in (
        Rows(somewhere("other"), ids, 5),
        Rows(somewhere(), ids, 4),
        Rows(somewhere(), ids + 1, 5),
        Rows(somewhere(), ids, 5, "needle"),
        Rows(somewhere("model", "otherwise"), ids, 5),
    ):
        assert elsewhere.get(one) is None


@pytest.fixture
def kept(empty_cache):
    """Rows of which two are kept, their methods, and their files."""
    rows, methods = Rows(somewhere(), torch.arange(9), 5), [PCA(0.5), PCA(0.25)]
    for kl, method in enumerate(methods):
        rows.put(method, Scored({"kl": float(kl)}))
    return rows, methods, [rows._file(method) for method in methods]


def is_measured_anew(rows, method, file, caplog) -> bool:
    """Whether a row is not believed, which is said in one notice, and a new one is."""
    caplog.clear()
    assert rows.get(method) is None and rows.get(method) is None
    (said,) = caplog.messages
    rows.put(method, Scored({"kl": 9.0}))
    fits = rows.get(method) == Scored({"kl": 9.0}) and len(caplog.messages) == 1
    return fits and str(file) in said and "measuring anew" in said


def test_a_row_with_a_changed_byte_is_measured_anew_and_said_so(kept, caplog):
    _, (method, _), (file, _) = kept
    content = file.read_bytes()
    for at, byte in enumerate(content):
        file.write_bytes(content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :])
        assert is_measured_anew(Rows(somewhere(), torch.arange(9), 5), method, file, caplog)


def test_the_row_of_another_measurement_is_not_believed(kept, caplog):
    rows, (one, _), (file, other) = kept
    shutil.copy(other, file)
    assert is_measured_anew(rows, one, file, caplog)


@pytest.mark.parametrize(
    "row", ["[1, 2]", "7", '{"kl": [1]}', '{"kl": {}}', "{", "", "[" * 100_000, "9" * 5000]
)
def test_a_sealed_row_of_another_shape_is_measured_anew(kept, caplog, row):
    rows, (method, _), (file, _) = kept
    _, header = sealed.read(file)
    sealed.write(file, {}, header | {"row": row})
    assert is_measured_anew(rows, method, file, caplog)
    sealed.write(file, {}, {"row": row})
    assert is_measured_anew(Rows(somewhere(), torch.arange(9), 5), method, file, caplog)


@pytest.mark.parametrize(
    "tables",
    [
        "{}",  # of a row that says that tokens were scored
        "[]",
        '{"others": {"rows": 0, "columns": {}}}',
        '{"tokens": {"rows": 6, "columns": {}}}',
        '{"tokens": 7}',
        "{",
    ],
)
def test_a_row_without_its_tokens_is_measured_anew(scored, caplog, tables):
    rows, method, file = scored
    tensors, header = sealed.read(file)
    sealed.write(file, tensors if tables[0] == "{" else {}, header | {"tables": tables})
    assert is_measured_anew(rows, method, file, caplog)


def test_what_each_token_costs_is_kept_to_the_bit(scored):
    rows, method, _ = scored
    _, _, start, continuation = families.scored("llama_gqa")
    measured = Judge(start.cache, continuation).scored(method)
    kept = rows.get(method)
    assert kept.row["kl_max_nats"] == measured.row["kl_max_nats"] > 0
    assert len(kept.tables[TOKENS]) == families.SCORED
    for name in (TOKENS, LEDGER):
        pd.testing.assert_frame_equal(kept.tables[name], measured.tables[name], check_exact=True)


@pytest.mark.parametrize("method", [PCA(0.5), KeyNorm(0.5)])
def test_bits_of_tokens_are_kept_with_a_row_where_there_are_any(method, empty_cache):
    _, ids, start, continuation = families.scored("llama_gqa")
    rows, measured = Rows(somewhere(), ids, 5), Judge(start.cache, continuation).scored(method)
    rows.put(method, measured)
    kept = rows.get(method)
    assert kept.row == measured.row and set(kept.tables) == set(measured.tables)
    assert (TOKEN_BITS in kept.tables) == (method == KeyNorm(0.5))
    for name, table in measured.tables.items():
        pd.testing.assert_frame_equal(kept.tables[name], table, check_exact=True)
    if TOKEN_BITS in kept.tables:
        bits = kept.tables[TOKEN_BITS]
        assert bits["bits"].sum() == pytest.approx(8 * kept.row["stored_bytes"])
        assert bits["bits_per_value"].mean() == pytest.approx(kept.row["bits_per_value"])


@pytest.fixture
def scored(empty_cache):
    """Rows of which a measured one is kept, its method, and its file."""
    rows, method = Rows(somewhere(), torch.arange(9), 5), PCA(0.5)
    _, _, start, continuation = families.scored("llama_gqa")
    rows.put(method, Judge(start.cache, continuation).scored(method))
    return rows, method, rows._file(method)


def test_a_row_that_is_a_pipe_or_a_folder_is_not_waited_for(kept, caplog):
    rows, methods, files = kept
    for make, method, file in zip((os.mkfifo, os.mkdir), methods, files, strict=True):
        file.unlink()
        make(file)
        assert rows.get(method) is None
        assert f"{file} is no regular file" in caplog.messages[-1]


def test_a_run_on_damaged_rows_measures_anew_and_says_which_file(mode, empty_cache, capsys):
    flags = ["--methods", "none,int8", "--context_tokens", "72", "--score_tokens", "4"]
    flags += ["--num_samples", "2"]
    assert mode("compare", *flags) == 0
    files = sorted((empty_cache / "rows").iterdir())
    assert len(files) >= 4
    capsys.readouterr()
    for file, content in zip(files, cycle(["[]", "{}", "NaN", '{"ratio": 0}']), strict=False):
        file.write_text(content)
    assert mode("compare", *flags) == 0
    said = capsys.readouterr().err
    assert all(said.count(file.name) == 1 for file in files)
    assert mode("compare", *flags) == 0
    assert ".row" not in capsys.readouterr().err


def test_kept_rows_are_taken_and_new_ones_kept_by_every_study(empty_cache):
    work, samples = Here(families.fresh("llama_gqa")), reference_samples()
    given = {"context_tokens": 100, "score_tokens": 4, "num_samples": 1, "no_sensitivity": True}
    study = TuckerStudy(token_rank=8, embedding_rank=8, **given)
    once = carry_out(study, work, samples).rows
    ids = scored_texts.long_enough(families.fresh("llama_gqa"), samples, 100, 4, 1)[0][1]
    rows = Rows(work, ids, 100)
    kept = rows.get(Uncompressed())
    assert kept is not None and kept.row["kl_mean_nats"] == 0
    rows.put(Uncompressed(), replace(kept, row=kept.row | {"ratio": 7}))
    again = carry_out(study, Here(families.fresh("llama_gqa")), samples).rows
    assert again["ratio"].tolist() == [7, *once["ratio"][1:]]
    assert again["compress_s"].tolist() == once["compress_s"].tolist()  # nothing measured anew


def test_a_folder_that_cannot_be_written_keeps_no_rows(empty_cache):
    empty_cache.write_text("a file in the way")
    rows = Rows(somewhere(), torch.arange(9), 5)
    rows.put(Uncompressed(), Scored({"kl": 0.5}))
    assert rows.get(Uncompressed()) is None


def identity(name: str, settings: dict | None = None, **changes) -> str:
    return families.fresh(name, settings=settings, **changes).identity


def test_a_models_identity_follows_its_weights():
    same = families.fresh("llama_gqa")
    assert same.identity == identity("llama_gqa")
    changed = replace(same)  # an identity is computed once for what was loaded
    changed.model.lm_head.weight.data[0, 0] += 1
    assert changed.identity != same.identity


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mistral", {"sliding_window": 2 * families.WINDOW}),
        ("llama_gqa", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("llama_gqa", {"rms_norm_eps": 1e-3}),
        ("llama_gqa", {"max_position_embeddings": 512}),
        ("gemma2", {"attn_logit_softcapping": 7.0}),
    ],
)
def test_equal_weights_under_other_settings_are_another_model(name, setting):
    one, other = families.model(name), families.model(name, setting)
    weights = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert identity(name) != identity(name, setting)


def test_a_buffer_that_no_checkpoint_holds_is_part_of_the_identity():
    other = families.fresh("falcon_h1")
    other.model.model.layers[0].mamba.mup_vector += 1
    assert "mup_vector" not in "".join(other.model.state_dict())
    assert other.identity != identity("falcon_h1")


def test_the_kind_of_attention_is_no_part_of_the_identity():
    assert identity("llama_gqa", attn_implementation="eager") == identity("llama_gqa")


@pytest.mark.parametrize("name", families.SETTINGS)
def test_a_copy_of_a_models_folder_is_the_same_model(name, folder_of, tmp_path):
    here = Path(folder_of(name))
    shutil.copytree(here, tmp_path / "copy")
    assert (
        load(str(here), device="cpu").identity
        == load(str(tmp_path / "copy"), device="cpu").identity
    )


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama_gqa", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}),
        ("phi3", LONG_ROPE),
    ],
)
def test_a_model_stays_the_same_while_a_long_text_renews_its_frequencies(name, rope):
    changed = {"rope_parameters": rope, "max_position_embeddings": 64}
    if name == "phi3":
        changed["original_max_position_embeddings"] = 32
    loaded = families.fresh(name, settings=changed)
    before, turning = loaded.identity, loaded.model.model.rotary_emb.inv_freq.clone()
    prefill(loaded, families.token_ids(100))
    assert not torch.equal(loaded.model.model.rotary_emb.inv_freq, turning)
    assert replace(loaded).identity == before


def test_rows_are_of_chunks_where_a_text_is_longer_than_one():
    plain = families.fresh("llama_gqa")
    chunked = replace(plain, prefill_chunk=4)
    assert plain.reading(5) == plain.reading(4) == chunked.reading(4) != chunked.reading(5)
    assert replace(plain, cache_offload="disk").reading(4) != plain.reading(4)
