"""What each token costs, against its definition entry by entry."""

import json
import math

import pytest
import torch

from compression.scored_tokens import LIKELIEST, WORST, ScoredTokens

N, VOCABULARY = 50, 20


def word(token: int) -> str:
    return f'"{token}"\N{SNOWMAN}'


@pytest.fixture
def both() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, N, VOCABULARY).mul(3).log_softmax(-1).unbind()


def tokens_of(full: torch.Tensor, other: torch.Tensor, ids: torch.Tensor) -> ScoredTokens:
    nats = (-x.gather(1, ids[:, None])[:, 0] for x in (full, other))
    return ScoredTokens.of(full, other, *nats)


def test_a_row_is_what_a_token_costs(both):
    full, other = both
    ids = torch.arange(N) % VOCABULARY
    tokens = tokens_of(full, other, ids)
    table = tokens.table(ids, 7, word)
    expected = [
        sum(math.exp(p) * (p - q) for p, q in zip(*each, strict=True))
        for each in zip(full.tolist(), other.tolist(), strict=True)
    ]
    assert table["kl_nats"].tolist() == pytest.approx(expected, rel=1e-4)
    assert table["position"].tolist() == list(range(7, 7 + N))
    assert table["token"].tolist() == [word(i) for i in ids.tolist()]
    assert table["nats_full"].tolist() == [-full[i, t].item() for i, t in enumerate(ids)]
    assert table["nats"].tolist() == [-other[i, t].item() for i, t in enumerate(ids)]
    worst = sorted(range(N), key=expected.__getitem__)[-WORST:]
    assert table.index[table["top"].notna()].tolist() == sorted(worst)
    assert table["top_full"].notna().equals(table["top"].notna())
    for name, predicted in (("top_full", full), ("top", other)):
        for place in worst:
            row = predicted[place].tolist()
            likely = sorted(range(VOCABULARY), key=row.__getitem__, reverse=True)[:LIKELIEST]
            said = json.loads(table.loc[place, name])
            assert [each[0] for each in said] == [word(i) for i in likely]
            shares = [math.exp(row[i]) for i in likely]
            assert [each[1] for each in said] == pytest.approx(shares, abs=1e-4)


def test_the_verdict_is_of_the_rows(both):
    ids = torch.zeros(N, dtype=torch.long)
    tokens = tokens_of(*both, ids)
    table, verdict = tokens.table(ids, 0, word), tokens.verdict
    shares = {"kl_p50_nats": 0.5, "kl_p99_nats": 0.99, "kl_p999_nats": 0.999, "kl_max_nats": 1}
    for name, share in shares.items():
        assert verdict[name] == pytest.approx(table["kl_nats"].quantile(share), rel=1e-5)
    assert verdict["kl_mean_nats"] == pytest.approx(table["kl_nats"].mean(), rel=1e-6)
    assert verdict["perplexity"] == pytest.approx(math.exp(table["nats"].mean()), rel=1e-6)


def test_a_few_tokens_of_a_small_vocabulary_are_all_told():
    full, other = torch.randn(2, 3, 2).log_softmax(-1).unbind()
    table = tokens_of(full, other, torch.zeros(3, dtype=torch.long)).table(torch.zeros(3), 0, str)
    assert all(len(json.loads(said)) == 2 for name in ("top", "top_full") for said in table[name])
