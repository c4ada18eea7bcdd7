"""Command line: flags -> RunConfig -> one mode. The only place that prints results.

Start-up imports stay light; each mode imports what it needs.
"""

import argparse
import logging
import os
import sys
from dataclasses import fields

import config
from config import RunConfig, UsageError


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
    """Prefill, analyse, generate, draw: the pictures of one focus or all."""
    from analysis.measures import sweep
    from analysis.tables import Subject, tables
    from data import extraction, models, texts
    from data.record import RunRecord
    from visualization.output import OutputFolder

    with OutputFolder(run.output_dir) as output, RunRecord(run) as record:
        sample = texts.choose(run)
        with record.phase("load"):
            loaded = models.load(run)
        about_tokens = run.analysis_focus in ("all", "tokens")
        length = run.sequence_length or config.SEQUENCE_LENGTH
        new_tokens = run.new_tokens if about_tokens else 0
        token_ids = extraction.tokenise(loaded, sample, length, new_tokens)
        with record.phase("prefill"):
            start = extraction.prefill(loaded, token_ids, probe=about_tokens)
        with record.phase("analysis"):
            swept = sweep(start.cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
            words = [texts.visible(loaded.tokenizer.decode([i])) for i in token_ids.tolist()]
            made = tables(Subject(swept, start.attention, words), run.analysis_focus)
        if about_tokens:
            made |= _stages(run, record, loaded, start)
        facts = {"thresholds": swept.thresholds}
        _deliver(output, record, loaded, sample, len(token_ids), made, facts)


def analyze_generation(run: RunConfig) -> None:
    """The generation stages alone, on the whole text."""
    from data import extraction, models, texts
    from data.record import RunRecord
    from visualization.output import OutputFolder

    with OutputFolder(run.output_dir) as output, RunRecord(run) as record:
        sample = texts.choose(run)
        with record.phase("load"):
            loaded = models.load(run)
        token_ids = extraction.tokenise(loaded, sample, run.sequence_length, run.new_tokens)
        with record.phase("prefill"):
            start = extraction.prefill(loaded, token_ids)
        made = _stages(run, record, loaded, start)
        _deliver(output, record, loaded, sample, len(token_ids), made, {})


def _stages(run: RunConfig, record, loaded, start) -> dict:
    from analysis.generation import generation_stages
    from data.extraction import generate

    with record.phase("generation"):
        cache = generate(loaded, start, run.new_tokens)
    with record.phase("analysis"):
        stages = generation_stages(cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
    return {"tokens/generation_stages_comparison": stages}


def _deliver(output, record, loaded, sample, n_tokens, made, facts) -> None:
    """Draw and save the tables of a run, then print what they say."""
    from analysis.findings import key_findings, recommendations
    from visualization.catalogue import PICTURES

    about = f"{loaded.name} · {sample.name} · {n_tokens} tokens"
    shares = (config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE)
    with record.phase("drawing"):
        for stem, table in made.items():
            named = table.assign(model=loaded.name, text_source=sample.source)
            if stem not in PICTURES:
                output.table(stem, named)
            elif len(table):
                output.picture(stem, PICTURES[stem](table, about), named)
    findings = key_findings(made, *shares, config.TOP_TOKENS)
    advice = recommendations(made, shares[0])
    manifest = record.manifest(loaded, sample, n_tokens) | facts
    manifest |= {"findings": findings, "recommendations_not_measured": advice}
    files = output.commit(f"{record.run.mode}.json", manifest)
    record.close()
    if record.run.quiet:
        return
    _print_list(f"Key findings ({about})", findings)
    _print_list("Recommendations (heuristics, not yet measured)", advice)
    _print_list("Files", files)
    print(record.timing_line())


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


def _quiet_start(quiet: bool) -> None:
    """Notices go to stderr as they are; bars only to a terminal that wants them."""
    if quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    for package in ("data", "analysis", "visualization"):
        logging.getLogger(package).handlers = [handler]
        logging.getLogger(package).propagate = False


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
