"""Command line: flags -> RunConfig -> one mode. The only place that prints results.

Start-up imports stay light; each mode imports what it needs.
"""

import io
import logging
import os
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import config
from config import RunConfig, UsageError

STARTED = time.perf_counter()


def analyze(run: RunConfig) -> None:
    """The pictures of one focus, or all, on the beginning of a text."""
    _analyse(run, run.analysis_focus, run.sequence_length or config.SEQUENCE_LENGTH)


def analyze_generation(run: RunConfig) -> None:
    """The generation stages alone, on the whole text."""
    _analyse(run, "generation", run.sequence_length)


def _analyse(run: RunConfig, focus: str, length: int | None) -> None:
    """Prefill, measure, generate, draw, deliver."""
    from analysis.findings import key_findings, recommendations
    from analysis.generation import generation_stages
    from analysis.measures import sweep, thresholds
    from analysis.tables import Subject, tables
    from data import extraction, models, texts
    from data.record import RunRecord
    from visualization.output import OutputFolder

    generates = focus in ("all", "tokens", "generation")
    percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
    made = {}
    with OutputFolder(run.output_dir) as output, RunRecord(run, STARTED) as record:
        with record.phase("text"):
            sample = texts.choose(run)
        with record.phase("load"):
            loaded = models.load(run)
        new_tokens = run.new_tokens if generates else 0
        with record.phase("text"):
            token_ids = extraction.tokenise(loaded, sample, length, new_tokens)
        with record.phase("prefill"):
            start = extraction.prefill(loaded, token_ids, probe=focus in ("all", "tokens"))
        with record.phase("analysis"):
            limits = thresholds(start.cache, percentage)
            if focus != "generation":
                words = [texts.visible(loaded.tokenizer.decode([i])) for i in token_ids.tolist()]
                swept = sweep(start.cache, percentage)
                made |= tables(Subject(swept, start.attention, words), focus)
        if generates:
            with record.phase("generation"):
                cache = extraction.generate(loaded, start, run.new_tokens)
            with record.phase("analysis"):
                stages = generation_stages(start.cache, cache, limits)
                made["tokens/generation_stages_comparison"] = stages
        _draw(output, record, made, loaded, sample, len(token_ids))
        facts = record.manifest(loaded, sample, len(token_ids)) | {"thresholds": limits}
        shares = (config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE)
        facts["findings"] = key_findings(made, *shares, config.TOP_TOKENS)
        facts["recommendations_not_measured"] = recommendations(made, shares[0])
        files = output.commit(f"{run.mode}.json", facts)
    if not run.quiet:
        _print_list(f"Key findings on {loaded.name}, {sample.source}", facts["findings"])
        advice = facts["recommendations_not_measured"]
        _print_list("Recommendations (heuristics, not yet measured)", advice)
        _print_list("Files", files)
        print(record.timing_line())


def tucker(run: RunConfig) -> None:
    """Tucker decomposition: what it stores, what it loses, and what the model makes of it."""
    import pandas as pd

    from compression import tucker_study
    from compression.base import Uncompressed
    from compression.evaluate import Judge, as_records, summary
    from compression.tucker import Tucker
    from data import extraction, models, scoring
    from data.record import RunRecord
    from visualization.output import OutputFolder

    method = Tucker.from_run(run)
    context = run.sequence_length or config.TUCKER_SEQUENCE_LENGTH
    with OutputFolder(run.output_dir) as output, RunRecord(run, STARTED) as record:
        with record.phase("load"):
            loaded = models.load(run)
        with record.phase("text"):
            texts = scoring.long_enough(loaded, run, context)
        rows = []
        for sample, ids in texts:
            with record.phase("prefill"):
                start = extraction.prefill(loaded, ids[:context])
            with record.phase("scoring"):
                judge = Judge(start.cache, scoring.Continuation(loaded, start.past, ids[context:]))
                method.refuse_idle(judge.cache)
                named = {"text_source": sample.source, "index": sample.index, "title": sample.title}
                compared = dict.fromkeys([Uncompressed(), replace(method, unrotated_keys=False)])
                compared[method] = None
                rows += [named | judge.score(each) for each in compared]
                if sample is texts[0][0]:
                    ranks = (config.TOKEN_RANKS, config.EMBEDDING_RANKS)
                    sensitive = not run.no_sensitivity
                    made = tucker_study.close_look(judge, method, ranks, sensitive)
                    first = pd.Series(rows[-1])
        made["tucker/texts"] = pd.DataFrame(rows)
        made["tucker/summary"] = summary(made["tucker/texts"])
        sample = texts[0][0]
        _draw(output, record, made, loaded, sample, context)
        facts = record.manifest(loaded, sample, context)
        facts["verdict"] = tucker_study.verdict(made["tucker/summary"], first, made)
        facts["summary"] = as_records(made["tucker/summary"])
        facts["texts"] = [sample.name for sample, _ in texts]
        files = output.commit(f"{run.mode}.json", facts)
    if not run.quiet:
        _print_list(f"Tucker on {loaded.name}, {sample.source}", facts["verdict"])
        _print_list("Files", files)
        print(record.timing_line())


def _draw(output, record, made: dict, loaded, sample, n_tokens: int) -> None:
    """Pictures and tables of a run, each naming the model and the text."""
    from visualization.catalogue import PICTURES

    about = f"{loaded.name} · {sample.name} · {n_tokens} tokens"
    with record.phase("drawing"):
        for stem, table in made.items():
            names = {"model": loaded.name, "text_source": sample.source}
            named = table.assign(**{k: v for k, v in names.items() if k not in table})
            if stem not in PICTURES:
                output.table(stem, named)
            elif len(table):
                output.picture(stem, PICTURES[stem](table, about), named)
    record.close()


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

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # of no narrower type
        raise UsageError(f"{tokenizer_file} is no tokenizer ({error}): mend the model.") from None
    return lambda text: len(tokenizer.encode(text).ids)


MODES = {
    "analyze": analyze,
    "analyze_generation": analyze_generation,
    "tucker": tucker,
    "list_samples": list_samples,
}


class _Notices(logging.Handler):
    """Writes notices to stderr, above a bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {record.getMessage()}", file=sys.stderr)


def _start(quiet: bool) -> None:
    """Notices go to stderr as they are; bars only to a terminal that wants them."""
    if quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for package in ("data", "analysis", "compression", "visualization"):
        logging.getLogger(package).handlers = [_Notices()]


def _usable_streams() -> None:
    """A closed stream swallows what is written; one that lacks a character shows its escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        if isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _terminate(*_) -> None:
    raise SystemExit(143)  # a kill cleans up as Ctrl-C does


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    try:
        config.check()
        flags = vars(config.parser(MODES).parse_args(arguments))
        run = RunConfig(**{f.name: flags[f.name] for f in fields(RunConfig)})
        _start(run.quiet)
        MODES[run.mode](run)
        sys.stdout.flush()
    except UsageError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmain.py: interrupted; earlier results were kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return 0
    except OSError as error:  # output that cannot be written, and whatever else the system refuses
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _usable_streams()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
