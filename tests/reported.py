"""Folders of results made by hand, of any size, for the page that is made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

PLAIN_BYTES = 23_040  # of a token
CONTEXT = 512
SETTINGS = {  # label -> (bytes per token, KL, bytes stored once, engine)
    "coded 2.0e-04": (840.0, 0.0048, 48_000_000, ""),
    "coded 5.0e-05": (2065.0, 0.0004, 48_000_000, ""),
    "kivi-2": (5800.0, 0.19, 0, 'transformers cache_config={"nbits": 2}'),
    "kivi-4": (9180.0, 0.0044, 0, 'transformers cache_config={"nbits": 4}, or llama.cpp -ctk q4_0'),
    "fp8": (11_520.0, 0.0027, 0, "vLLM --kv-cache-dtype fp8_e4m3"),
    "none": (float(PLAIN_BYTES), 0.0, 0, ""),
}
WORDS = ("␣the", "␣cache", "␣of", "␣a", "␣model", ".", "\\n", "␣keeps", "␣keys")


def write(folder: Path, stem: str, table: pd.DataFrame) -> str:
    file = folder / f"{stem}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return f"{stem}.csv"


def manifest(folder: Path, mode: str, files: list[str], **more: Any) -> None:
    text = {"source": "test text", "index": 0, "title": "a title", "tokens_read": CONTEXT}
    told = {
        "mode": mode,
        "settings": {"mode": mode, "model": "smollm2-135m", "output_dir": str(folder)},
        "model": {"name": "tiny (random)", "revision": "1", "dtype": "float32", "device": "cpu"},
        "text": text,
        "texts": [text],
        "cache": {"keys_and_values_bytes_in_16_bits": PLAIN_BYTES * CONTEXT},
        "files": files,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{mode}.json").write_text(json.dumps(told))


def compared(folder: Path, n_scored: int = 200, token: str = "␣cache") -> Path:
    """What `compare` leaves, its ledger and its scored tokens among it."""
    table = pd.DataFrame(
        [
            {
                "method": label.split()[0],
                "label": label,
                "family": label.split()[0],
                "texts": 2,
                "stored_bytes": each * CONTEXT,
                "original_bytes": PLAIN_BYTES * CONTEXT,
                "per_model_bytes": once,
                "ratio": PLAIN_BYTES / each,
                "kl_mean_nats": kl,
                "kl_mean_nats_se": kl / 10,
                "delta_perplexity_percent": 100 * kl,
                "frontier": label.startswith("coded") or label == "none",
                "bytes_per_token": each,
                "engine": engine,
            }
            for label, (each, kl, once, engine) in SETTINGS.items()
        ]
    )
    needles = [
        {"label": x, "depth": 0.1, "right": x != "kivi-2", "probability": 0.5} for x in SETTINGS
    ]
    files = [
        write(folder, "compare/compare", table.sample(frac=1, random_state=0)),
        write(folder, "compare/needle", pd.DataFrame(needles)),
        write(folder, "compare/scored_tokens", scored(n_scored, token)),
        write(folder, "compare/byte_ledger", parts()),
        write(folder, "compare/bits_by_token", spent(token)),
    ]
    manifest(folder, "compare", files, verdict=["Take coded 2.0e-04.", "Nothing else is smaller."])
    return folder


def scored(n: int, token: str = "␣cache") -> pd.DataFrame:
    """n tokens of one text under each setting; the costs are lognormal around its mean."""
    draw = np.random.default_rng(0)
    rows = []
    for label, (_, kl, _, _) in SETTINGS.items():
        costs = np.maximum(kl, 1e-9) * draw.lognormal(0, 1.5, n)
        worst = set(np.argsort(costs)[::-1][:32])
        top = json.dumps([[token, 0.5], ["␣the", 0.25], [".", 0.125], ["a", 0.0625], ["b", 0.03]])
        rows += [
            {
                "label": label,
                "settings": "",
                "text_index": 0,
                "position": CONTEXT + i,
                "token": token if i % 7 == 0 else WORDS[i % len(WORDS)],
                "kl_nats": costs[i],
                "nats_full": 2.0,
                "nats": 2.0 + costs[i],
                "top_full": top if i in worst else "",
                "top": top if i in worst else "",
            }
            for i in range(n)
        ]
    return pd.DataFrame(rows)


def spent(token: str = "␣cache", n: int = CONTEXT) -> pd.DataFrame:
    """The text of `analysed`, under settings that spend more on some of its tokens."""
    draw = np.random.default_rng(2)
    rows = []
    for label in ("coded 5.0e-05", "coded 2.0e-04", "kivi-2"):
        values = np.minimum(12, SETTINGS[label][0] / PLAIN_BYTES * 16 * draw.lognormal(0, 0.7, n))
        values[0] = 16.0
        rows.append(
            pd.DataFrame(
                {
                    "label": label,
                    "text_index": 0,
                    "position": np.arange(n),
                    "token": [token if i == 5 else WORDS[i % len(WORDS)] for i in range(n)],
                    "bits": values * PLAIN_BYTES / 2,
                    "bits_per_value": values,
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def parts() -> pd.DataFrame:
    """Groups of five layers whose parts add up to what each setting stores."""
    rows = []
    for label, (each, _, once, _) in SETTINGS.items():
        stored = int(each * CONTEXT)
        header, rest = 1000, stored - 1000
        for group in range(6):
            for kind in ("key", "value"):
                whole = rest // 12 + (rest % 12 if (group, kind) == (0, "key") else 0)
                layers = f"{5 * group}-{5 * group + 4}"
                rows.append((label, layers, kind, "integers", whole - whole // 8, False))
                rows.append((label, layers, kind, "scales", whole // 8, False))
        rows.append((label, "", "", "header", header, False))
        if once:
            rows.append((label, "", "", "basis", once, True))
    names = ["label", "layers", "kind", "part", "bytes", "once_per_model"]
    return pd.DataFrame(rows, columns=names).assign(settings="")


def analysed(
    folder: Path,
    layers: int = 4,
    heads: int = 3,
    tokens: int = 300,
    token: str = "␣cache",
    **more: Any,
) -> Path:
    """What `analyze` leaves of tokens and norms."""
    draw = np.random.default_rng(1)
    received = draw.lognormal(-7, 1.5, (layers, heads, tokens)).astype(np.float16)
    received[:, :, 0] = 0.4
    watcher = np.minimum(np.arange(tokens) + 1 + draw.integers(0, 9, (layers, tokens)), tokens - 1)
    watcher[:, -1] = -1
    table = pd.DataFrame(
        {
            "position": np.arange(tokens),
            "token_id": 1,
            "token": [token if i == 5 else WORDS[i % len(WORDS)] for i in range(tokens)],
            "key_norm": draw.random(tokens) + 20,
            "value_norm": draw.random(tokens) + 5,
            "attention_received": received.astype(np.float64).mean((0, 1)),
            "importance": draw.random(tokens),
            "seen_by": np.arange(tokens, 0, -1),
            "well_seen": np.arange(tokens, 0, -1) >= 64,
            "model": "tiny (random)",
        }
    )
    files = [
        write(folder, "tokens/token_position_importance", table),
        write(folder, "cache/norms_in_time", norms(layers, tokens)),
        "tokens/attention.safetensors",
    ]
    save_file(
        {
            "received": received,
            "watcher": watcher.astype(np.int32),
            "watcher_weight": draw.random((layers, tokens)).astype(np.float16),
        },
        folder / "tokens/attention.safetensors",
        {"layers": json.dumps(list(range(layers)))},
    )
    said = {"findings": ["A finding."], "recommendations_not_measured": ["Try layer 0."]}
    manifest(folder, "analyze", files, **(said | more))
    return folder


def norms(layers: int, tokens: int) -> pd.DataFrame:
    """At most 512 bins, the last tenth of them generated."""
    width = -(-tokens // 512)
    starts = np.arange(0, tokens, width)
    kinds = ("key", "unrotated key", "value")
    index = pd.MultiIndex.from_product(
        [kinds, range(layers), starts], names=["kind", "layer", "position"]
    )
    table = index.to_frame(index=False)
    table["tokens"] = np.minimum(width, tokens - table["position"])
    table["stage"] = np.where(table["position"] >= 0.9 * tokens, "generated", "prefill")
    table["norm"] = (
        10 + table["layer"] + (table["kind"] == "value") * 5 + table["position"] / tokens
    )
    table["cosine_to_mean"] = 1 - 0.5 * table["position"] / tokens
    return table
