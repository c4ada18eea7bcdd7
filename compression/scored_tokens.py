"""What a changed cache costs token by token: how far the model's prediction of each moves, what the
token that is really there costs, and what the model holds likeliest instead where it moves most."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch

WORST = 32  # tokens of a text whose likeliest continuations are kept
LIKELIEST = 5
QUANTILES = {"kl_p50_nats": 0.5, "kl_p99_nats": 0.99, "kl_p999_nats": 0.999, "kl_max_nats": 1.0}
COLUMNS = ("position", "token", "kl_nats", "nats_full", "nats", "top_full", "top")


@dataclass(frozen=True)
class Likeliest:
    """Token ids (tokens, few) and their probabilities, the likeliest first."""

    ids: torch.Tensor
    probabilities: torch.Tensor

    @classmethod
    def of(cls, log_probabilities: torch.Tensor) -> "Likeliest":
        """log_probabilities: (tokens, vocabulary)."""
        most = log_probabilities.topk(min(LIKELIEST, log_probabilities.shape[1]), dim=1)
        return cls(most.indices.cpu(), most.values.exp().cpu())

    def told(self, word: Callable[[int], str]) -> list[str]:
        """For each token a JSON list of words with their probabilities."""
        pairs = zip(self.ids.tolist(), self.probabilities.tolist(), strict=True)
        return [
            json.dumps([[word(i), round(p, 4)] for i, p in zip(*each, strict=True)],
                       ensure_ascii=False)
            for each in pairs
        ]  # fmt: skip


@dataclass(frozen=True)
class ScoredTokens:
    """kl: (scored,) KL(full || changed) of the predictions of each token, in nats. nats_full, nats:
    (scored,) what the token that is there costs on top of the untouched cache, and of the changed
    one. agrees: (scored,) whether both hold the same token likeliest. worst: (few,) the places of
    the largest kl, the largest first; likeliest_full, likeliest: of these."""

    kl: torch.Tensor
    nats_full: torch.Tensor
    nats: torch.Tensor
    agrees: torch.Tensor
    worst: torch.Tensor
    likeliest_full: Likeliest
    likeliest: Likeliest

    @classmethod
    def of(
        cls, full: torch.Tensor, other: torch.Tensor, nats_full: torch.Tensor, nats: torch.Tensor
    ) -> "ScoredTokens":
        """full, other: (scored, vocabulary) log-probabilities."""
        share = full.exp()  # where it is 0, so is its term
        kl = torch.where(share > 0, share * (full - other), 0.0).sum(-1)
        worst = kl.topk(min(WORST, len(kl))).indices
        return cls(
            kl.cpu(),
            nats_full.cpu(),
            nats.cpu(),
            (full.argmax(-1) == other.argmax(-1)).cpu(),
            worst.cpu(),
            Likeliest.of(full[worst]),
            Likeliest.of(other[worst]),
        )

    @property
    def verdict(self) -> dict[str, float]:
        """Perplexities, KL and agreement over all of them."""
        full, now = (math.exp(x.double().mean().item()) for x in (self.nats_full, self.nats))
        return {
            "perplexity_full": full,
            "perplexity": now,
            "delta_perplexity_percent": 100 * (now / full - 1),
            "kl_mean_nats": self.kl.double().mean().item(),
            **{name: self.kl.quantile(share).item() for name, share in QUANTILES.items()},
            "top1_agreement": self.agrees.double().mean().item(),
        }

    def table(
        self, token_ids: torch.Tensor, first: int, word: Callable[[int], str]
    ) -> pd.DataFrame:
        """COLUMNS, a row for each of these (scored,) token ids, which stand in the text from
        position `first` on; `top_full` and `top` are empty but for the worst tokens."""
        tops = pd.DataFrame(None, range(len(self.kl)), ["top_full", "top"], dtype="str")
        for name, likeliest in (("top_full", self.likeliest_full), ("top", self.likeliest)):
            tops.loc[self.worst.numpy(), name] = likeliest.told(word)
        named = {
            "position": range(first, first + len(self.kl)),
            "token": pd.Series([word(i) for i in token_ids.tolist()], dtype="str"),
            "kl_nats": self.kl.numpy(),
            "nats_full": self.nats_full.numpy(),
            "nats": self.nats.numpy(),
        }
        return pd.DataFrame(named).join(tops)
