"""What compression costs: one path for every method, from stored bytes to the model's predictions.

A text's context is prefilled once. For each method the same cache is compressed, restored from
what is stored, and the tokens that follow are fed on top of it in one teacher-forced forward pass;
the same pass on top of the untouched cache is what it is compared with. "Untouched" is the cache
in 16 bits, as it is served.
"""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from compression.base import Compressor
from compression.costs import COSTS, costs, tried
from config import UsageError
from data.cache import KVCache
from data.inventory import Inventory
from data.scoring import Continuation
from data.texts import printable

MEASURES = (
    *COSTS,
    "ratio_of_all_kept",
    "perplexity_full",
    "perplexity",
    "delta_perplexity_percent",
    "kl_mean_nats",
    "kl_p99_nats",
    "top1_agreement",
)


class Judge:
    """Scores methods on one text: the cache of its context, and the text that follows."""

    def __init__(self, cache: KVCache, continuation: Continuation) -> None:
        self.cache = cache.in_16_bits()
        self.continuation = continuation
        self.inventory = Inventory.of(continuation.past)
        self._full = continuation.log_probabilities(self.cache)  # (scored, vocabulary)
        self._full_nats = self._mean_nats(self._full, "the untouched cache")

    def shortened(self, n_scored: int) -> "Judge":
        """The same with at most so many tokens scored."""
        fewer = replace(self.continuation, token_ids=self.continuation.token_ids[: n_scored + 1])
        return Judge(self.cache, fewer)

    def score(self, method: Compressor) -> dict[str, Any]:
        """One row: settings, bytes, errors, and the model's verdict."""
        whole = tried(method, self.cache)
        found = costs(method, [whole])
        return {
            "method": method.name,
            "settings": method.words(),
            "context_tokens": self.cache.n_tokens,
            "scored_tokens": self.continuation.n_scored,
            **found,
            "ratio_of_all_kept": self._ratio_of_all_kept(whole.stored_bytes),
            **self.verdict(whole.restored, method.words()),
        }

    def _ratio_of_all_kept(self, stored_nbytes: int) -> float:
        """What the model keeps beside keys and values stays as it is."""
        return self.inventory.nbytes / (stored_nbytes + self.inventory.state_nbytes)

    def verdict(self, restored: KVCache, name: str = "a changed cache") -> dict[str, float]:
        """Perplexities, KL(full || restored) and agreement over the scored tokens."""
        other = self.continuation.log_probabilities(restored)
        nats = self._mean_nats(other, name)
        share = self._full.exp()  # where it is 0, so is its term
        kl = torch.where(share > 0, share * (self._full - other), 0.0).sum(-1)
        agree = (self._full.argmax(-1) == other.argmax(-1)).float().mean().item()
        full, now = math.exp(self._full_nats), math.exp(nats)
        return {
            "perplexity_full": full,
            "perplexity": now,
            "delta_perplexity_percent": 100 * (now / full - 1),
            "kl_mean_nats": kl.mean().item(),
            "kl_p99_nats": kl.quantile(0.99).item(),
            "top1_agreement": agree,
        }

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

    def _mean_nats(self, log_probabilities: torch.Tensor, name: str) -> float:
        nats = self.continuation.nats(log_probabilities).double().mean().item()
        if not math.isfinite(nats):
            raise UsageError(
                f"The model's loss on top of {name} is not finite", "this setting cannot be scored"
            )
        return nats


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
