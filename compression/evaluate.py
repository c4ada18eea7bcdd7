"""What compression costs: one path for every method, from stored bytes to the model's predictions.

A text's context is prefilled once. For each method the same cache is compressed, restored from
what is stored, and the tokens that follow are fed on top of it in one teacher-forced forward pass;
the same pass on top of the untouched cache is what it is compared with. "Untouched" is the cache
in 16 bits, as it is served.
"""

import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from compression.base import Compressor
from config import UsageError
from data.cache import KINDS, KVCache
from data.inventory import Inventory
from data.scoring import Continuation
from data.texts import printable

MEASURES = (
    "original_bytes",
    "stored_bytes",
    "per_model_bytes",
    "bits_per_value",
    "ratio",
    "ratio_of_all_kept",
    "key_error",
    "value_error",
    "perplexity_full",
    "perplexity",
    "delta_perplexity_percent",
    "kl_mean_nats",
    "kl_p99_nats",
    "top1_agreement",
    "compress_s",
    "restore_s",
)


def relative_errors(cache: KVCache, restored: KVCache) -> pd.DataFrame:
    """layer, kind, relative_error, and the squares that the error of several layers is made of.

    ||X - X^|| / ||X||, Frobenius; an evicted entry counts as zero.
    """
    rows = []
    for layer, back in zip(cache.layers, restored.layers, strict=True):
        for kind in KINDS:
            x, y = layer.tensor(kind).double(), back.tensor(kind).double()
            if back.keep is not None:
                y = y * back.keep[..., None]
            squares = {"squared_error": (x - y).square().sum().item()}
            squares["squared_norm"] = x.square().sum().item()
            rows.append({"layer": layer.index, "kind": kind, **squares})
    table = pd.DataFrame(rows)
    return table.assign(relative_error=_relative(table))


def _relative(squares: pd.DataFrame) -> pd.Series:
    """||X - X^|| / ||X||; 0 where nothing is lost, of zeros too."""
    ratio = squares["squared_error"] / squares["squared_norm"]
    return ratio.where(squares["squared_error"] > 0, 0.0) ** 0.5


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
        began = time.perf_counter()
        compressed = method.compress(self.cache)
        compress_s = time.perf_counter() - began
        began = time.perf_counter()
        restored = compressed.restore()
        restore_s = time.perf_counter() - began
        errors = relative_errors(self.cache, restored).groupby("kind").sum()
        relative = _relative(errors)
        return {
            "method": method.name,
            "settings": method.words(),
            "context_tokens": self.cache.n_tokens,
            "scored_tokens": self.continuation.n_scored,
            "original_bytes": self.cache.nbytes,
            "stored_bytes": compressed.nbytes,
            "per_model_bytes": method.per_model_nbytes,
            "bits_per_value": 8 * compressed.nbytes / self.cache.n_entries,
            "ratio": compressed.ratio,
            "ratio_of_all_kept": self._ratio_of_all_kept(compressed.nbytes),
            "key_error": relative["key"],
            "value_error": relative["value"],
            **self.verdict(restored, method.words()),
            "compress_s": compress_s,
            "restore_s": restore_s,
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
