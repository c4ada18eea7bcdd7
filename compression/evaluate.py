"""What compression costs: one path for every method, from stored bytes to the model's predictions.

A text's context is prefilled once. For each method the same cache is compressed, restored from
what is stored, and the tokens that follow are fed on top of it in one teacher-forced forward pass;
the same pass on top of the untouched cache is what it is compared with. "Untouched" is the cache
in 16 bits, as it is served.
"""

import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from compression.base import Compressor
from compression.costs import COSTS, costs, tried
from compression.ledger import ledger
from compression.scored_tokens import ScoredTokens
from compression.token_bits import token_bits
from config import UsageError
from data.cache import KVCache
from data.inventory import Inventory
from data.scoring import Continuation
from data.texts import printable, visible

MEASURES = (
    *COSTS,
    "ratio_of_all_kept",
    "perplexity_full",
    "perplexity",
    "delta_perplexity_percent",
    "kl_mean_nats",
    "kl_p50_nats",
    "kl_p99_nats",
    "kl_p999_nats",
    "kl_max_nats",
    "top1_agreement",
)
Row: TypeAlias = dict[str, Any]  # numbers and words by the names of their columns
TOKENS, LEDGER, TOKEN_BITS = "tokens", "ledger", "token_bits"  # of `Scored.tables`


@dataclass(frozen=True)
class Scored:
    """What a method costs on one text. tables: what the row sums up, by name: TOKENS, see
    `ScoredTokens.table`, LEDGER, see `ledger`, and TOKEN_BITS, see `token_bits`, of a method that
    spends more on some tokens than on others."""

    row: Row
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


class Judge:
    """Scores methods on one text: the cache of its context, and the text that follows."""

    def __init__(self, cache: KVCache, continuation: Continuation) -> None:
        self.cache = cache.in_16_bits()
        self.continuation = continuation
        self.inventory = Inventory.of(continuation.past)
        self._full = continuation.log_probabilities(self.cache)  # (scored, vocabulary)
        self._full_nats = self._nats(self._full, "the untouched cache")

    def shortened(self, n_scored: int) -> "Judge":
        """The same with at most so many tokens scored."""
        fewer = replace(self.continuation, token_ids=self.continuation.token_ids[: n_scored + 1])
        return Judge(self.cache, fewer)

    def score(self, method: Compressor) -> dict[str, Any]:
        """One row: settings, bytes, errors, and the model's verdict."""
        return self.scored(method).row

    def scored(self, method: Compressor) -> Scored:
        """The row, and what it sums up."""
        whole = tried(method, self.cache, by_token=True)
        found = costs(method, [whole])
        tokens = self.tokens(whole.restored, method.words())
        row = {
            "method": method.name,
            "settings": method.words(),
            "context_tokens": self.cache.n_tokens,
            "scored_tokens": self.continuation.n_scored,
            **found,
            "ratio_of_all_kept": self._ratio_of_all_kept(whole.compressed.stored_nbytes),
            **tokens.verdict,
        }
        first = self.cache.n_tokens + 1  # the token between is fed, and not scored
        word = lru_cache(maxsize=None)(self._word)
        table = tokens.table(self.continuation.token_ids[1:], first, word)
        tables = {TOKENS: table, LEDGER: ledger(whole.compressed)}
        if whole.bits_by_token is not None:
            shape = whole.compressed.shape
            tables[TOKEN_BITS] = token_bits(whole.bits_by_token, shape, word)
        return Scored(row, tables)

    def _ratio_of_all_kept(self, stored_nbytes: int) -> float:
        """What the model keeps beside keys and values stays as it is."""
        return self.inventory.nbytes / (stored_nbytes + self.inventory.state_nbytes)

    def verdict(self, restored: KVCache, name: str = "a changed cache") -> dict[str, float]:
        """Perplexities, KL(full || restored) and agreement over the scored tokens."""
        return self.tokens(restored, name).verdict

    def tokens(self, restored: KVCache, name: str = "a changed cache") -> ScoredTokens:
        """What each scored token costs on top of a restored cache."""
        other = self.continuation.log_probabilities(restored)
        return ScoredTokens.of(self._full, other, self._full_nats, self._nats(other, name))

    def continued(self, restored: KVCache, n_tokens: int) -> str:
        """What the model says after the context and the token that follows it, greedily."""
        ids = self.continuation.greedy(restored, n_tokens)
        return printable(self.continuation.loaded.tokenizer.decode(ids))

    def recall(self, restored: KVCache, n_answer: int) -> tuple[bool, float]:
        """Whether the last `n_answer` tokens of the continuation are what the model would say, and
        the probability that it does."""
        predicted = self.continuation.log_probabilities(restored)[-n_answer:]
        answer = self.continuation.token_ids[-n_answer:].to(predicted.device)
        right = bool((predicted.argmax(-1) == answer).all())
        return right, predicted.gather(1, answer[:, None]).sum().exp().item()

    def _nats(self, log_probabilities: torch.Tensor, name: str) -> torch.Tensor:
        """(scored,)"""
        nats = self.continuation.nats(log_probabilities)
        if not nats.isfinite().all():
            raise UsageError(
                f"The model's loss on top of {name} is not finite", "this setting cannot be scored"
            )
        return nats

    def _word(self, token_id: int) -> str:
        return visible(self.continuation.loaded.tokenizer.decode([token_id]))


def as_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for a JSON file; null where there is no number."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return records


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per method and setting the mean over texts, and `_se`, its standard error (empty for one).

    Perplexities are exp(total nats / tokens scored) over all texts, which score as many each.
    """
    groups = rows.groupby(["method", "settings"], sort=False)
    means = groups[list(MEASURES)].mean()
    for name in ("perplexity_full", "perplexity"):
        means[name] = np.exp(groups[name].agg(lambda each: np.log(each).mean()))
    means["delta_perplexity_percent"] = 100 * (means["perplexity"] / means["perplexity_full"] - 1)
    errors = groups[["perplexity", "delta_perplexity_percent", "kl_mean_nats"]].sem()
    counts = groups.size().rename("texts")
    return pd.concat([counts, means, errors.add_suffix("_se")], axis=1).reset_index()
