"""Every method at true bytes on one model, and how far `coded` is ahead: the figures of the README.

    python -m benchmarks.frontier --context_tokens 2048 --text_file wiki.test.raw [--num_samples 8]
        [--methods coded,kivi] [--output_dir graphs/frontier]

Scores articles of WikiText, in its raw form with ` = Title = ` lines; what is calibrated is so on
the offline corpus, which is of another domain. Prints the table, writes it as CSV with the texts'
own rows and the picture. Finished rows are kept: an interrupted run goes on. Times in the table are
those of one run per text; `timings` at the end are medians beside the prefill of the same run.
"""

import argparse
import os
import re
import statistics
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import pandas as pd
import torch

import config
from compression import presets
from compression.base import Compressor
from compression.evaluate import Judge, summary, words
from compression.frontier import bits_at, with_frontier
from compression.learned import learned
from config import RunConfig
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
    """Medians of five rounds, side by side in one process."""
    seconds: dict[str, list[float]] = {"prefill": [], "compress": [], "restore": []}
    for _ in range(5):
        began = time.perf_counter()
        cache = extraction.prefill(loaded, ids).cache.in_16_bits()
        seconds["prefill"].append(time.perf_counter() - began)
        began = time.perf_counter()
        compressed = method.compress(cache)
        seconds["compress"].append(time.perf_counter() - began)
        began = time.perf_counter()
        compressed.restore()
        seconds["restore"].append(time.perf_counter() - began)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    shares = ", ".join(
        f"{name} {s:.2f} s ({s / medians['prefill']:.2f} of prefill)" for name, s in medians.items()
    )
    print(f"timings at {len(ids)} tokens, {method.name} {words(method)}: {shares}")


def ahead(table: pd.DataFrame) -> None:
    """Bits per value of each family at some losses, between its measured settings."""
    for loss in (0.003, config.ACCEPTABLE_KL):
        bits = {family: bits_at(rows, loss) for family, rows in table.groupby("family")}
        coded = bits.get("coded", float("nan"))
        print(f"at KL {loss:g}, bits per value (times those of coded):")
        for family, each in sorted(bits.items(), key=lambda item: item[1]):
            if each == each:
                print(f"  {family:16} {each:6.2f}  {each / coded:5.2f} x")


def flags() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--text_file", type=Path, required=True)
    p.add_argument("--context_tokens", type=int, default=2048)
    p.add_argument("--score_tokens", type=int, default=config.SCORE_TOKENS)
    p.add_argument("--num_samples", type=int, default=8)
    p.add_argument("--methods", type=lambda text: text.split(","), default=None)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    p.add_argument("--output_dir", type=Path, default=Path("graphs/frontier"))
    return p.parse_args()


def main() -> None:
    given = flags()
    loaded = models.load(RunConfig(model=given.model))
    identity, chosen = model_identity(loaded), methods(given.methods, loaded)
    need = given.context_tokens + 1 + given.score_tokens
    rows, used = [], []
    for number, text in enumerate(articles(given.text_file)):
        ids = torch.tensor(loaded.tokenizer(text)["input_ids"][:need])
        if len(ids) < need or len(used) == given.num_samples:
            continue
        used.append(ids)
        found = scored(loaded, ids, given.context_tokens, chosen, identity)
        rows += [{"article": number, "text_source": given.text_file.name} | row for row in found]
    table = summary(pd.DataFrame(rows))
    said = {(m.name, words(m)): names for m, names in chosen.items()}
    names = [said[key] for key in zip(table["method"], table["settings"], strict=True)]
    table = with_frontier(table.assign(family=[f for f, _ in names], label=[x for _, x in names]))
    about = f"{loaded.name} · {given.text_file.name}, {len(used)} articles · "
    about += f"{given.context_tokens} tokens, {given.score_tokens} scored"
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
        timings(loaded, used[0][: given.context_tokens], coded[len(coded) // 2])


if __name__ == "__main__":
    main()
