"""Command line: flags -> RunConfig -> one mode. The only place that prints results.

Start-up imports stay light; each mode imports what it needs.
"""

import argparse
import logging
import os
import sys
import time
from dataclasses import fields

import config
from config import RunConfig, UsageError

STARTED = time.perf_counter()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}. `python main.py --help` shows all flags.")


def parser() -> argparse.ArgumentParser:
    """All flags; their defaults are those of config.py."""
    p = _Parser(
        prog="main.py",
        description="Extract the KV cache of a language model on real text, analyse and draw it.",
        epilog="Defaults are edited in config.py.",
        allow_abbrev=False,
    )
    p.add_argument("--mode", choices=MODES, default="analyze", help="what to do (%(default)s)")
    p.add_argument(
        "--analysis_focus",
        choices=config.FOCUSES,
        default="all",
        help="which pictures `analyze` makes (%(default)s)",
    )
    model = p.add_argument_group("model")
    model.add_argument(
        "--model",
        default=config.DEFAULT_MODEL,
        help="%(default)s (downloaded on first use), a hub id, a local folder, or a .gguf file",
    )
    model.add_argument("--device", choices=config.DEVICES, default=config.DEVICE)
    model.add_argument("--dtype", choices=config.DTYPES, default=config.DTYPE)
    model.add_argument(
        "--trust_remote_code",
        action=argparse.BooleanOptionalAction,
        default=config.TRUST_REMOTE_CODE,
        help="let a model run Python code of its own (off)",
    )
    text = p.add_argument_group("text")
    text.add_argument("--prompt", help="this text")
    text.add_argument("--text_file", help="a UTF-8 .txt file, or a .jsonl file with a field `text`")
    text.add_argument(
        "--use_wikitext",
        action=argparse.BooleanOptionalAction,
        default=config.USE_WIKITEXT,
        help="a WikiText article, or else the offline corpus (%(default)s)",
    )
    text.add_argument(
        "--wikitext_index",
        type=int,
        default=config.WIKITEXT_INDEX,
        help="which sample of either corpus; `--mode list_samples` shows them (%(default)s)",
    )
    text.add_argument(
        "--sequence_length",
        type=int,
        help=f"tokens of the text to read ({config.SEQUENCE_LENGTH}; analyze_generation: all)",
    )
    text.add_argument(
        "--new_tokens",
        type=int,
        default=config.NEW_TOKENS,
        help="tokens to generate after it (%(default)s)",
    )
    output = p.add_argument_group("output")
    output.add_argument("--output_dir", default=config.OUTPUT_DIR, help="(%(default)s)")
    output.add_argument("--quiet", action="store_true", help="no progress bars and no findings")
    return p


def analyze(run: RunConfig) -> None:
    """The pictures of one focus, or all, on the beginning of a text."""
    _analyse(run, run.analysis_focus, run.sequence_length or config.SEQUENCE_LENGTH)


def analyze_generation(run: RunConfig) -> None:
    """The generation stages alone, on the whole text."""
    _analyse(run, "generation", run.sequence_length)


def _analyse(run: RunConfig, focus: str, length: int | None) -> None:
    """Prefill, measure, generate, draw, deliver."""
    from analysis.generation import generation_stages
    from analysis.measures import sweep
    from analysis.tables import Subject, tables
    from data import extraction, models, texts
    from data.record import RunRecord
    from visualization.catalogue import PICTURES
    from visualization.output import OutputFolder

    generates = focus in ("all", "tokens", "generation")
    percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
    made, limits = {}, {}
    with OutputFolder(run.output_dir) as output, RunRecord(run, STARTED) as record:
        sample = texts.choose(run)
        with record.phase("load"):
            loaded = models.load(run)
        new_tokens = run.new_tokens if generates else 0
        token_ids = extraction.tokenise(loaded, sample, length, new_tokens)
        with record.phase("prefill"):
            start = extraction.prefill(loaded, token_ids, probe=focus in ("all", "tokens"))
        if focus != "generation":
            with record.phase("analysis"):
                words = [texts.visible(loaded.tokenizer.decode([i])) for i in token_ids.tolist()]
                swept = sweep(start.cache, percentage)
                made |= tables(Subject(swept, start.attention, words), focus)
                limits["text"] = swept.thresholds
        if generates:
            with record.phase("generation"):
                cache = extraction.generate(loaded, start, run.new_tokens)
            with record.phase("analysis"):
                stages = generation_stages(cache, percentage)
                made["tokens/generation_stages_comparison"] = stages
                limits["with_new_tokens"] = dict(
                    zip(stages["kind"], stages["threshold"], strict=True)
                )
        about = f"{loaded.name} · {sample.name} · {len(token_ids)} tokens"
        with record.phase("drawing"):
            for stem, table in made.items():
                named = table.assign(model=loaded.name, text_source=sample.source)
                if stem not in PICTURES:
                    output.table(stem, named)
                elif len(table):
                    output.picture(stem, PICTURES[stem](table, about), named)
        record.close()
        facts = record.manifest(loaded, sample, len(token_ids)) | {"thresholds": limits}
        _deliver(output, facts, made)
    if not run.quiet:
        print(record.timing_line())


def _deliver(output, facts: dict, made: dict) -> None:
    """Put the results in their place and print what they say."""
    from analysis.findings import key_findings, recommendations

    shares = (config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE)
    findings = key_findings(made, *shares, config.TOP_TOKENS)
    advice = recommendations(made, shares[0])
    facts |= {"findings": findings, "recommendations_not_measured": advice}
    files = output.commit(f"{facts['mode']}.json", facts)
    if not facts["settings"]["quiet"]:
        text = facts["text"]
        _print_list(f"Key findings on {facts['model']['name']}, {text['source']}", findings)
        _print_list("Recommendations (heuristics, not yet measured)", advice)
        _print_list("Files", files)


def _print_list(title: str, lines: list[str]) -> None:
    print(f"{title}:")
    for line in lines:
        print(f"  - {line}")
    print()


def list_samples(run: RunConfig) -> None:
    """The corpus that the other modes choose from; loads neither torch nor weights."""
    from data import sources, texts

    corpus = texts.samples(run.use_wikitext)
    file = sources.tokenizer_file(run.model)
    count = _token_counter(file)
    print(f"{corpus[0].source}: {len(corpus)} samples" if corpus else "no samples")
    print(f"{'index':>5}  {'characters':>10}  {'tokens':>6}  title and first words")
    for sample in corpus:
        words = texts.first_line(sample.text.split("\n", 1)[-1], 60)
        title = texts.first_line(sample.title, 60)
        tokens = "" if count is None else count(sample.text)
        print(f"{sample.index:>5}  {len(sample.text):>10}  {tokens:>6}  {title} | {words}")
    if count is None:
        print(f"(no token counts: the tokenizer of {run.model} is not on this machine yet)")


def _token_counter(tokenizer_file):
    """text -> number of tokens, None without a tokenizer file."""
    if tokenizer_file is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return lambda text: len(tokenizer.encode(text).ids)


MODES = {
    "analyze": analyze,
    "analyze_generation": analyze_generation,
    "list_samples": list_samples,
}


class _Notices(logging.Handler):
    """Writes notices to stderr, above a bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {record.getMessage()}", file=sys.stderr)


def _quiet_start(quiet: bool) -> None:
    """Notices go to stderr as they are; bars only to a terminal that wants them."""
    if quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for package in ("data", "analysis", "visualization"):
        logging.getLogger(package).handlers = [_Notices()]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    try:
        config.check()
        flags = vars(parser().parse_args(arguments))
        run = RunConfig(**{f.name: flags[f.name] for f in fields(RunConfig)})
        _quiet_start(run.quiet)
        MODES[run.mode](run)
        sys.stdout.flush()
    except UsageError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmain.py: interrupted; earlier results were kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
