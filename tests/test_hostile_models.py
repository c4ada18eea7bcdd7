"""Models and texts at the edge of what there is: weights of zeros, texts of a token or two."""

import warnings

import pytest
import torch

from compression import prompts
from compression.coded.kept_calibrations import calibration_of
from compression.studies.analyze import Analysis
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.run import run
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data.texts import Sample
from data.vocabulary import FOCUSES
from tests import families
from visualization.catalogue import PICTURES

SAMPLE = Sample(0, "title", "source", "The cache of a model holds keys and values. " * 3)
SHORT = {"context_tokens": 40, "score_tokens": 4, "num_samples": 1}
PLAIN = {"sink_tokens": 0, "recent_tokens": 0}


@pytest.fixture
def zeros():
    loaded = families.fresh("llama_gqa")
    with torch.no_grad():
        for weights in loaded.model.parameters():
            weights.zero_()
    return loaded


STUDIES = {
    "tucker by energy": (TuckerStudy, {"energy": 0.9, **PLAIN}),
    "tucker by energy alone": (TuckerStudy, {"energy": 0.9, "no_sensitivity": True, **PLAIN}),
    "tucker by ranks": (TuckerStudy, {"token_rank": 1, "embedding_rank": 1, **PLAIN}),
    "similarity": (SimilarityStudy, PLAIN),
    "compress": (CompressStudy, PLAIN),
    "prune": (PruneStudy, {}),
    "prune on trial": (PruneStudy, {"trial": True}),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_model_of_zeros_is_studied_and_nothing_of_it_is_lost(zeros, name):
    study, settings = STUDIES[name]
    outcome = run(study(**SHORT, **settings), zeros, [SAMPLE])
    assert (outcome.rows["kl_mean_nats"] == 0).all()
    assert (outcome.rows[["key_error", "value_error"]] == 0).all(axis=None)


def test_a_model_of_zeros_is_analysed_and_drawn_without_a_warning(zeros):
    found = Analysis(context_tokens=40, new_tokens=2).run(zeros, [SAMPLE])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [
            PICTURES[stem](table, "") for stem, table in found.tables.items() if stem in PICTURES
        ]
    assert len(drawn) == len(set(found.tables) & set(PICTURES)) > 5


def test_a_model_of_zeros_cannot_be_calibrated(zeros, empty_cache):
    with pytest.raises(UsageError, match="cannot be calibrated"):
        calibration_of(zeros)


@pytest.mark.parametrize("family", ["llama_gqa", "gemma3", "deepseek_v3", "falcon", "qwen3_next"])
@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_a_short_text_gives_what_can_be_given(family, n_tokens):
    loaded = families.loaded(family)
    text = [Sample(0, "title", "source", "abc"[:n_tokens])]
    for focus in (*FOCUSES, "generation"):
        found = Analysis(analysis_focus=focus, new_tokens=2).run(loaded, text)
        assert found.texts[0].tokens_read == n_tokens and found.findings


@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_a_short_context_is_studied(n_tokens):
    loaded = families.loaded("llama_gqa")
    for name, (study, settings) in STUDIES.items():
        short = {"context_tokens": n_tokens, "score_tokens": 1, "num_samples": 1}
        rows = run(study(**short, **settings), loaded, [SAMPLE]).rows
        assert rows["kl_mean_nats"].notna().all(), name


def test_a_prompt_of_one_token_is_refused_and_one_of_two_is_stored(tmp_path):
    loaded, file = families.loaded("llama_gqa"), str(tmp_path / "x.kv")
    with pytest.raises(UsageError, match="one token leaves nothing to store"):
        prompts.save(loaded, Sample(0, "t", "s", "a"), file, ["none"])
    assert prompts.save(loaded, Sample(0, "t", "s", "ab"), file, ["none"])
