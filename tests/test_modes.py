"""Every mode on every kind of cache: it runs, or says in a sentence why not. (`calibrate` and
`store` are tried on each in test_layouts.py.)"""

from functools import cache

import pytest

from compression.studies.analyze import Analysis
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.run import run
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data.corpora import reference_samples
from data.loaded_model import LoadedModel
from tests import families

SHORT = {"context_tokens": 72, "score_tokens": 4, "num_samples": 1}
ENDS = {"sink_tokens": 2, "recent_tokens": 8}
COMPARED = ("int8", "svd", "recent", "snapkv", "composed")
STUDIES = {
    "analyze_similarity": SimilarityStudy(**SHORT, **ENDS),
    "tucker": TuckerStudy(**SHORT, **ENDS, token_rank=4, embedding_rank=4, no_sensitivity=True),
    "compress": CompressStudy(**SHORT, **ENDS, levels=(0.5,)),
    "prune": PruneStudy(**SHORT, prune_method="dimension", levels=(0.5,)),
    "prune tokens": PruneStudy(**SHORT, prune_method="token", keep_tokens=0.5),
    "compare": CompareStudy(**SHORT, quick=True, methods=COMPARED),
}
EVICT = {"prune tokens"}
every_family = pytest.mark.parametrize("name", families.SETTINGS)


@cache
def loaded(name: str) -> LoadedModel:
    return families.loaded(name)


@every_family
@pytest.mark.parametrize("focus", ["all", "generation"])
def test_analyze(name, focus):
    found = Analysis(analysis_focus=focus, context_tokens=40, new_tokens=2).run(
        loaded(name), reference_samples()
    )
    assert found.tables and found.findings and found.texts[0].tokens_read == 40


@every_family
@pytest.mark.parametrize("mode", STUDIES)
def test_a_mode_runs_or_says_why_not(name, mode, empty_cache):
    refused = mode in EVICT and name in families.UNHIDDEN
    try:
        outcome = run(STUDIES[mode], loaded(name), reference_samples())
    except UsageError as refusal:
        assert refused, refusal
        assert "what evicting" in refusal.reason or "what that costs" in refusal.reason
    else:
        assert not refused and outcome.report.tables and outcome.report.lines
        rows = outcome.rows
        assert rows["kl_mean_nats"].notna().all()
        assert (rows.loc[rows["method"] == "none", "kl_mean_nats"] == 0).all()
