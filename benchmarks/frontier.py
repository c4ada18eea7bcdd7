"""Every method at true bytes on one model, and how far `coded` is ahead: the figures of the README.

    python -m benchmarks.frontier --context_tokens 2048 --text_file wiki.test.raw [--num_samples 8]
        [--skip_articles 20] [--unspaced] [--methods coded,kivi] [--output_dir graphs/frontier]

Scores articles of WikiText, in its raw form with ` = Title = ` lines; the first can be skipped,
which were looked at while methods were designed, and WikiText's spacing can be undone. What is
calibrated is so on other texts, half of them of another domain. Prints the table, writes it as CSV
with the texts' own rows and the picture. Finished rows are kept: an interrupted run goes on. Times
in the table are those of one run per text; `timings` at the end are medians beside the prefill of
the same run.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

os.environ["TQDM_DISABLE"] = "1"

import pandas as pd
import torch

import config
from benchmarks.wikitext import articles
from compression.base import Compressor
from compression.coded.kept_calibrations import calibration_of
from compression.registry import make
from compression.studies import presets
from compression.studies.compare import CompareStudy
from compression.studies.frontier import bits_by_family
from compression.studies.run import run
from config import UsageError
from data import extraction, models
from data.clock import now
from data.loaded_model import LoadedModel
from visualization.compare import pareto, perplexity
from visualization.picture_files import save

T = TypeVar("T")
COLUMNS = ["label", "ratio", "bits_per_value", "kl_mean_nats", "kl_mean_nats_se"]
COLUMNS += ["delta_perplexity_percent", "delta_perplexity_percent_se", "top1_agreement"]
COLUMNS += ["compress_s", "restore_s", "per_model_bytes"]


def timings(loaded: LoadedModel, ids: torch.Tensor, method: Compressor) -> None:
    """Medians of five rounds, side by side in one process; and what it costs the prefill to
    measure the attention from the last queries, which `coded` asks for."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = now(loaded.device)
        made = work()
        seconds.setdefault(name, []).append(now(loaded.device) - began)
        return made

    prefill = partial(extraction.prefill, loaded, ids)
    for _ in range(5):
        timed("prefill", prefill)
        cache = timed("probed", partial(prefill, probe=True, recent_only=True)).cache.in_16_bits()
        compressed = timed("compress", partial(method.compress, cache))
        timed("restore", compressed.restore)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    plain, added = medians["prefill"], medians.pop("probed") - medians["prefill"]
    shares = ", ".join(f"{n} {s:.2f} s ({s / plain:.2f} of prefill)" for n, s in medians.items())
    print(f"timings at {len(ids)} tokens, {method.name} {method.words()}: {shares}")
    print(f"attention from the last queries {added:+.2f} s ({added / plain:+.2f} of prefill)")


def ahead(table: pd.DataFrame) -> None:
    """Bits per value of each family at some losses, between its measured settings."""
    for loss in (0.003, config.ACCEPTABLE_KL):
        bits = bits_by_family(table, loss)
        if not bits:
            continue
        coded = bits.get("coded")
        print(f"at KL {loss:g}, bits per value{' (times those of coded)' if coded else ''}:")
        for family, each in bits.items():
            print(f"  {family:16} {each:6.2f}" + (f"  {each / coded:5.2f} x" if coded else ""))


def flags() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--text_file", type=Path, required=True)
    p.add_argument("--context_tokens", type=int, default=2048)
    p.add_argument("--score_tokens", type=int, default=config.SCORE_TOKENS)
    p.add_argument("--num_samples", type=int, default=8)
    p.add_argument("--skip_articles", type=int, default=0)
    p.add_argument("--unspaced", action="store_true", help="undo the spacing of WikiText")
    p.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=None)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    p.add_argument("--output_dir", type=Path, default=Path("graphs/frontier"))
    return p.parse_args()


def described(given: argparse.Namespace, loaded: LoadedModel, n_articles: int) -> str:
    """The model, the text and the lengths, for pictures."""
    unspaced = ", spaced as people write" if given.unspaced else ""
    skipped = f" from #{given.skip_articles} on" if given.skip_articles > 0 else ""
    return (
        f"{loaded.name} · {given.text_file.name}, {n_articles} articles{skipped}{unspaced} · "
        f"{given.context_tokens} tokens, {given.score_tokens} scored"
    )


def measure(given: argparse.Namespace) -> None:
    study = CompareStudy(
        methods=given.methods,
        context_tokens=given.context_tokens,
        score_tokens=given.score_tokens,
        num_samples=given.num_samples,
        needles=False,
    )
    texts = articles(given.text_file, given.unspaced)
    if not texts[given.skip_articles :]:
        raise UsageError(
            f"--skip_articles {given.skip_articles} leaves none of the {len(texts)} articles of "
            f"{given.text_file}",
            "skip fewer",
        )
    loaded = models.load(given.model)
    outcome = run(study, loaded, texts[given.skip_articles :])
    table = outcome.report.tables["compare/compare"]
    about = described(given, loaded, len(outcome.samples))
    given.output_dir.mkdir(parents=True, exist_ok=True)
    stem = f"frontier_{given.context_tokens}" + ("_unspaced" if given.unspaced else "")
    table.assign(about=about).to_csv(given.output_dir / f"{stem}.csv", index=False)
    outcome.rows.to_csv(given.output_dir / f"{stem}_texts.csv", index=False)
    save(pareto(table, about), given.output_dir / f"{stem}.png")
    save(perplexity(table, about), given.output_dir / f"{stem}_perplexity.png")
    print(about)
    print(table[COLUMNS].to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    ahead(table)
    steps = [*presets.families()["coded"].values()]
    if (table["family"] == "coded").any():
        method = make(*steps[len(steps) // 2], calibration_of(loaded))
        text = outcome.samples[0]
        timings(loaded, extraction.tokenise(loaded, text, given.context_tokens), method)


def main() -> int:
    try:
        measure(flags())
    except (UsageError, OSError) as error:
        print(f"benchmarks.frontier: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
