"""`--mode tucker`: what a Tucker setting does to texts, in tables: errors by layer, the measured
cost of each layer's part, other ranks, and the decomposition of the first text itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import torch
from tqdm import tqdm

import config
from analysis.margins import error, not_apart, spread, tied
from compression.base import Uncompressed
from compression.costs import relative_errors
from compression.methods.place_by_place import content
from compression.methods.tucker import PARTS, Tucker
from compression.shapes import LayerShape
from compression.studies.base import Learned, Plan, Report, Study, Tables, plain_ends
from config import UsageError
from data.cache import KINDS, KVCache, wide

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model

LAYERS, RANKS = "tucker/layer_sensitivity", "tucker/rank_sensitivity"
MORE_BYTES = 1.1  # what counts as about the same bytes


def layer_sensitivity(judge: "Judge", method: Tucker, measured: bool = True) -> pd.DataFrame:
    """layer, kind, relative_error, kl_mean_nats.

    kl_mean_nats: measured with this layer's keys (or values) restored from the decomposition and
    all the rest untouched; empty where not `measured`.
    """
    restored = method.compress(judge.cache).restore()
    table = relative_errors(judge.cache, restored)[["layer", "kind", "relative_error"]]
    table["kl_mean_nats"] = float("nan")
    if measured:
        parts = [(i, kind) for i in range(judge.cache.n_layers) for kind in KINDS]
        table["kl_mean_nats"] = [
            judge.verdict(_with_part(judge.cache, restored, i, kind))["kl_mean_nats"]
            for i, kind in tqdm(parts, desc="Layer sensitivity", unit="part", leave=False)
        ]
    return table


def _with_part(cache: KVCache, restored: KVCache, i: int, kind: str) -> KVCache:
    """`cache` with the keys or the values of its i-th layer taken from `restored`."""
    changed = cache.layers[i].with_tensor(kind, restored.layers[i].tensor(kind))
    return replace(cache, layers=(*cache.layers[:i], changed, *cache.layers[i + 1 :]))


def rank_sensitivity(
    judge: "Judge", method: Tucker, token_ranks: Sequence[int], embedding_ranks: Sequence[int]
) -> pd.DataFrame:
    """token_rank, embedding_rank, ratio, bits_per_value, key_error, value_error, kl_mean_nats,
    delta_perplexity_percent; ranks that a layer does not have are left out."""
    columns = ["ratio", "bits_per_value", "key_error", "value_error"]
    columns += ["kl_mean_nats", "delta_perplexity_percent"]
    rows = []
    others = other_ranks(method, token_ranks, embedding_ranks)
    for other in tqdm(others, desc="Ranks", unit="setting", leave=False):
        try:
            row = judge.score(other)
        except UsageError:
            continue
        rows.append(
            {"token_rank": other.token_rank, "embedding_rank": other.embedding_rank}
            | {name: row[name] for name in columns}
        )
    return pd.DataFrame(rows, columns=["token_rank", "embedding_rank", *columns])


def with_own(ranks: pd.DataFrame, own: pd.Series, method: Tucker) -> pd.DataFrame:
    """The ranks tried, and in the column `own` which are the run's: a row more where they are none
    of those, without ranks where they are chosen layer by layer. own: the scores of the run's."""
    given = {
        "token_rank": method.token_rank or float("nan"),
        "embedding_rank": method.embedding_rank or float("nan"),
    }
    same = (ranks[list(given)] == pd.Series(given)).all(axis=1)
    ranks = ranks.assign(own=same)
    if same.any():
        return ranks
    row = pd.DataFrame([{**own.reindex(ranks.columns), **given, "own": True}])
    return pd.concat([ranks, row], ignore_index=True).astype({"own": bool})


def other_ranks(
    method: Tucker, token_ranks: Sequence[int], embedding_ranks: Sequence[int]
) -> list[Tucker]:
    """The same with each pair of these ranks, whatever chooses its own."""
    given = replace(method, token_rank=1, embedding_rank=1, energy=None, target_ratio=None)
    return [
        replace(given, token_rank=token_rank, embedding_rank=embedding_rank)
        for token_rank in token_ranks
        for embedding_rank in embedding_ranks
    ]


def components(method: Tucker, cache: KVCache, i: int) -> pd.DataFrame:
    """kind, part, head, row, column, value: core (heads, r_t, r_e), token factor (tokens, r_t) and
    embedding factor (dim, r_e) of the i-th layer; `head` is empty for factors.

    Beside them shares of the squared norm of what is decomposed: `kept`, by the core, whose ranks
    are its row and column; `kept_by_tokens` and `kept_by_dims`, at most, by as many components of
    one mode as its row says, with the other mode whole.
    """
    stored = method.compress(cache).stored
    tables = []
    for kind in KINDS:
        parts = {part: stored.get(f"{i}.{kind}.{part}") for part in PARTS}
        if parts["core"] is not None:
            named = parts.items()
            tables += [_long(x.float(), kind, part) for part, x in named if x is not None]
            layer = cache.layers[i]
            span = method.span(LayerShape.of(layer))
            decomposed = content(layer, kind, method.unrotated_keys)[:, span].cpu()
            tables.append(kept_energy(decomposed, parts["core"].float()).assign(kind=kind))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def kept_energy(x: torch.Tensor, core: torch.Tensor) -> pd.DataFrame:
    """part, row, column, value: see `components`. x (heads, tokens, dim), core (heads, r_t, r_e)
    with orthonormal factors."""
    norm = x.double().square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    kept = (core.double().square().sum() / norm).item()
    tables = [pd.DataFrame({"part": ["kept"], "row": core.shape[1], "column": core.shape[2]})]
    tables[0]["value"] = kept
    for part, unfolded in (("kept_by_tokens", wide(x)), ("kept_by_dims", x.flatten(0, 1))):
        by_rank = (_energies(unfolded) / norm).cumsum(0).numpy()
        rows = pd.DataFrame({"part": part, "row": range(1, 1 + len(by_rank)), "value": by_rank})
        tables.append(rows.assign(column=0))
    return pd.concat(tables, ignore_index=True)


def _energies(x: torch.Tensor) -> torch.Tensor:
    """Squared singular values of a matrix, the largest first, from the smaller of its Grams."""
    x = x if x.shape[0] >= x.shape[1] else x.T
    gram: torch.Tensor = (x.T @ x).double()
    energies: torch.Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return energies


def _long(tensor: torch.Tensor, kind: str, part: str) -> pd.DataFrame:
    heads = len(tensor) if tensor.ndim == 3 else 1
    head, row, column = torch.meshgrid(
        torch.arange(heads),
        torch.arange(tensor.shape[-2]),
        torch.arange(tensor.shape[-1]),
        indexing="ij",
    )
    return pd.DataFrame(
        {
            "kind": kind,
            "part": part,
            "head": head.flatten().numpy() if tensor.ndim == 3 else float("nan"),
            "row": row.flatten().numpy(),
            "column": column.flatten().numpy(),
            "value": tensor.flatten().numpy(),
        }
    )


@dataclass(frozen=True, kw_only=True)
class TuckerStudy(Study):
    """`--mode tucker`: one setting, its keys as stored and, if asked for, before rotary embedding;
    a close look at each text. Settings are those of `Tucker`.

    no_sensitivity: skip the measured cost of each layer, the longest part.
    """

    title: ClassVar[str] = "Tucker"
    token_rank: int | None = None
    embedding_rank: int | None = None
    energy: float | None = None
    target_ratio: float | None = None
    sink_tokens: int | None = None
    recent_tokens: int | None = None
    unrotated_keys: bool = False
    no_sensitivity: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method  # noqa: B018 (refuses what cannot work)

    @property
    def context(self) -> int:
        return self.context_tokens or config.TUCKER_SEQUENCE_LENGTH

    @property
    def method(self) -> Tucker:
        token_rank, embedding_rank = (
            usual if rank is None else rank
            for rank, usual in (
                (self.token_rank, config.TOKEN_RANK),
                (self.embedding_rank, config.EMBEDDING_RANK),
            )
        )
        chooses = self.energy is not None or self.target_ratio is not None
        return Tucker(
            token_rank=None if chooses else token_rank,
            embedding_rank=None if chooses else embedding_rank,
            energy=self.energy,
            target_ratio=self.target_ratio,
            unrotated_keys=self.unrotated_keys,
            **plain_ends(self.sink_tokens, self.recent_tokens),
        )

    def look(self, judge: "Judge", learned: Learned) -> "TuckerPlan":
        """Each layer, other ranks, and the components of the layer that costs most on this text, or
        where that is not measured, errs most."""
        self.method.refuse_idle(judge.cache)
        looked = self.see(judge)
        cost = "relative_error" if self.no_sensitivity else "kl_mean_nats"
        layers = looked[LAYERS]
        dearest = layers["layer"][layers[cost].idxmax()]
        place = [layer.index for layer in judge.cache.layers].index(dearest)
        parts = components(self.method, judge.cache, place).assign(layer=dearest)
        return TuckerPlan(self.method, looked, parts)

    def see(self, judge: "Judge") -> Tables:
        """Each layer, and other ranks."""
        ranks = rank_sensitivity(judge, self.method, config.TOKEN_RANKS, config.EMBEDDING_RANKS)
        layers = layer_sensitivity(judge, self.method, not self.no_sensitivity)
        return {LAYERS: layers, RANKS: ranks}


class TuckerPlan(Plan):
    """looked: see `TuckerStudy.see`. components: of the first text, see above."""

    def __init__(self, method: Tucker, looked: Tables, components: pd.DataFrame) -> None:
        self.method = method
        self.methods = [Uncompressed(), replace(method, unrotated_keys=False), method]
        self.looked = looked
        self.components = components

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        tables = {
            "tucker/tucker_components": self.components,
            **self.looked,
            "tucker/texts": rows,
            "tucker/summary": summary,
        }
        own = summary[summary["settings"] == self.method.words()].iloc[0]
        tables[RANKS] = with_own(self.looked[RANKS], own, self.method)
        lines = _stored_and_lost(summary[summary["method"] == Tucker.name])
        layers = self.looked[LAYERS]
        if layers["kl_mean_nats"].notna().any():
            dear = layers.nlargest(3, "kl_mean_nats")
            named = [
                f"layer {row['layer']} {row['kind']}s ({spread(row, 'kl_mean_nats', '.4f')})"
                for _, row in dear.iterrows()
            ]
            rest = not_apart(layers.drop(dear.index), "kl_mean_nats", dear.iloc[-1])
            lines.append(f"Dearest alone, in nats of measured KL: {', '.join(named)}{tied(rest)}.")
        return Report(tables, [*lines, _better_ranks(self.looked[RANKS], own)])


def _stored_and_lost(rows: pd.DataFrame) -> list[str]:
    """The last row is the setting asked for; one before it is that with rotated keys."""
    row = rows.iloc[-1]
    cost = spread(row, "kl_mean_nats", ".4f")
    lines = [
        f"Stored: {row['stored_bytes'] / 2**20:.2f} MiB, {row['bits_per_value']:.2f} bits per "
        f"value, {row['ratio']:.2f} x smaller than 16 bits, factors and plain tokens included.",
        f"Restored: relative error {row['key_error']:.3f} of keys, {row['value_error']:.3f} of "
        "values.",
        f"Measured over {row['texts']:.0f} text(s): KL {cost} nats per "
        f"token, perplexity {row['perplexity_full']:.2f} -> {row['perplexity']:.2f} "
        f"({row['delta_perplexity_percent']:+z.1f} %), same top token {row['top1_agreement']:.1%}.",
    ]
    if len(rows) > 1:
        other = rows.iloc[0]
        lines.append(
            f"Keys were decomposed before rotary embedding; as they are stored, after it, the same "
            f"setting errs by {other['key_error']:.3f} on keys and costs KL "
            f"{other['kl_mean_nats']:z.4f}."
        )
    return lines


def _better_ranks(ranks: pd.DataFrame, own: pd.Series) -> str:
    """Of the ranks tried, those that cost less than the run's `own` setting did, at about its
    bytes: over several texts, where the intervals of both part."""
    if own["texts"] < 2:
        return (
            "From one text it is not known whether other ranks cost less: give `num_samples` 2 or "
            "more."
        )
    fits = ranks[ranks["bits_per_value"] <= MORE_BYTES * own["bits_per_value"]]
    own_error = 0 if pd.isna(own["kl_mean_nats_se"]) else own["kl_mean_nats_se"]
    highest = fits["kl_mean_nats"] + error(fits, "kl_mean_nats")
    better = fits[highest < own["kl_mean_nats"] - own_error]
    if better.empty:
        return "No other ranks tried cost less at about these bytes."
    best = better.loc[better["kl_mean_nats"].idxmin()]
    rest = not_apart(better.drop(best.name), "kl_mean_nats", best, least=True)
    return (
        f"Better at about these bytes: token rank {best['token_rank']:.0f} with embedding rank "
        f"{best['embedding_rank']:.0f}, KL {spread(best, 'kl_mean_nats', '.4f')} instead of "
        f"{spread(own, 'kl_mean_nats', '.4f')}, {best['bits_per_value']:.2f} bits per value "
        f"instead of {own['bits_per_value']:.2f}{tied(rest)}."
    )
