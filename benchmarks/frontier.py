"""Every method at true bytes on one model, and how far `coded` is ahead: the figures of the README.

    python -m benchmarks.frontier --context_tokens 2048 --text_file wiki.test.raw [--num_samples 8]
        [--skip_articles 20] [--methods coded,kivi] [--output_dir graphs/frontier]

Scores articles of WikiText, in its raw form with ` = Title = ` lines; the first can be skipped,
which were looked at while methods were designed. What is calibrated is so on the offline corpus,
which is of another domain. Prints the table, writes it as CSV with the texts'
own rows and the picture. Finished rows are kept: an interrupted run goes on. Times in the table are
those of one run per text; `timings` at the end are medians beside the prefill of the same run.
"""

import argparse
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import pandas as pd
import torch

import config
from compression import presets
from compression.base import Compressor
from compression.evaluate import Judge, summary, words
from compression.frontier import bits_by_family, labelled
from compression.learned import learned
from config import RunConfig, UsageError
from data import extraction, models
from data.models import LoadedModel
from data.rows import Rows, model_identity
from data.scoring import Continuation
from visualization.compare import pareto, perplexity

COLUMNS = ["label", "ratio", "bits_per_value", "kl_mean_nats", "kl_mean_nats_se"]
COLUMNS += ["delta_perplexity_percent", "delta_perplexity_percent_se", "top1_agreement"]
COLUMNS += ["compress_s", "restore_s", "per_model_bytes"]


def articles(file: Path) -> list[str]:
    """The texts between title lines; a line of the form of a title inside one cuts it in two."""
    starts = r"^ = [^=\n].*[^=\n] = \n"
    text = file.read_text(encoding="utf-8")
    cuts = [found.start() for found in re.finditer(starts, text, re.M)]
    if not cuts:
        raise UsageError(
            f"--text_file {file} has no line of the form ` = Title = `: give WikiText in its raw "
            "form."
        )
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def methods(families: list[str] | None, loaded: LoadedModel) -> dict[Compressor, tuple[str, str]]:
    side = learned(loaded, model_identity(loaded))
    return {
        presets.made(setting, side): (family, label)
        for family, settings in presets.chosen(families, quick=False).items()
        for label, setting in settings.items()
    }


def scored(
    loaded: LoadedModel, ids: torch.Tensor, context: int, chosen: dict, identity: str
) -> list[dict]:
    kept = Rows(identity, ids, context, loaded.device)
    if kept.complete(chosen):
        return [kept.get(method) for method in chosen]
    start = extraction.prefill(loaded, ids[:context], probe=True)
    judge = Judge(start.cache, Continuation(loaded, start.past, ids[context:]))
    return judge.scores(chosen, kept)


def timings(loaded: LoadedModel, ids: torch.Tensor, method: Compressor) -> None:
    """Medians of five rounds, side by side in one process; and what it costs the prefill to
    measure the attention from the last queries, which `coded` asks for."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable):
        began = time.perf_counter()
        made = work()
        seconds.setdefault(name, []).append(time.perf_counter() - began)
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
    print(f"timings at {len(ids)} tokens, {method.name} {words(method)}: {shares}")
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
    p.add_argument("--methods", type=lambda text: text.split(","), default=None)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    p.add_argument("--output_dir", type=Path, default=Path("graphs/frontier"))
    return p.parse_args()


def long_enough(given: argparse.Namespace, loaded: LoadedModel) -> dict[int, torch.Tensor]:
    """The first token ids of as many articles as were asked for, by their number in the file."""
    texts = articles(given.text_file)
    need = given.context_tokens + 1 + given.score_tokens
    found: dict[int, torch.Tensor] = {}
    for number in range(given.skip_articles, len(texts)):
        ids = torch.tensor(loaded.tokenizer(texts[number])["input_ids"][:need])
        if len(ids) == need and len(found) < given.num_samples:
            found[number] = ids
    if not found:
        raise UsageError(
            f"None of the {len(texts)} articles of --text_file {given.text_file} from "
            f"#{given.skip_articles} on has {need} tokens: lower --context_tokens or "
            "--skip_articles."
        )
    return found


def described(given: argparse.Namespace, loaded: LoadedModel, n_articles: int) -> str:
    """The model, the text and the lengths, for pictures."""
    skipped = f" from #{given.skip_articles} on" if given.skip_articles > 0 else ""
    return (
        f"{loaded.name} · {given.text_file.name}, {n_articles} articles{skipped} · "
        f"{given.context_tokens} tokens, {given.score_tokens} scored"
    )


def measure(given: argparse.Namespace) -> None:
    loaded = models.load(RunConfig(model=given.model))
    used = long_enough(given, loaded)
    identity, chosen = model_identity(loaded), methods(given.methods, loaded)
    rows = []
    for number, ids in used.items():
        found = scored(loaded, ids, given.context_tokens, chosen, identity)
        rows += [{"article": number, "text_source": given.text_file.name} | row for row in found]
    table = labelled(summary(pd.DataFrame(rows)), chosen)
    about = described(given, loaded, len(used))
    given.output_dir.mkdir(parents=True, exist_ok=True)
    stem = f"frontier_{given.context_tokens}"
    table.assign(about=about).to_csv(given.output_dir / f"{stem}.csv", index=False)
    pd.DataFrame(rows).to_csv(given.output_dir / f"{stem}_texts.csv", index=False)
    pareto(table, about).savefig(given.output_dir / f"{stem}.png", dpi=config.FIGURE_DPI)
    perplexity(table, about).savefig(given.output_dir / f"{stem}_perplexity.png", dpi=120)
    print(about)
    print(table[COLUMNS].to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    ahead(table)
    coded = [method for method in chosen if method.name == "coded"]
    if coded:
        first = next(iter(used.values()))[: given.context_tokens]
        timings(loaded, first, coded[len(coded) // 2])


def main() -> int:
    try:
        measure(flags())
    except (UsageError, OSError) as error:
        print(f"benchmarks.frontier: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
