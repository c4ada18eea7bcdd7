"""Command line: flags -> RunConfig -> one mode. The only place that prints results.

Start-up imports stay light; each mode imports what it needs.
"""

import os
import signal
import sys
import time
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import config
from config import RunConfig, UsageError
from data import config_check
from data.flags import parser as flag_parser
from visualization import terminal

STARTED = time.perf_counter()


def analyze(run: RunConfig) -> None:
    """The pictures of one focus, or all, on the beginning of a text."""
    _analyse(run, run.analysis_focus, run.context(config.SEQUENCE_LENGTH))


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
        with record.phase("load"):
            loaded = models.load(run)
        with record.phase("text"):
            sample, ids = _text(run, loaded, length, run.new_tokens if generates else 0)
        token_ids = ids[:length]
        with record.phase("prefill"):
            watched = run.measure or focus in ("all", "tokens")
            start = extraction.prefill(loaded, token_ids, probe=watched)
        with record.phase("analysis"):
            limits = thresholds(start.cache, percentage)
            if focus != "generation":
                words = [texts.visible(loaded.tokenizer.decode([i])) for i in token_ids.tolist()]
                made |= tables(Subject(sweep(start.cache, percentage), words), focus)
        measured = []
        if run.measure:
            with record.phase("scoring"):
                costs, measured = _measured(run, loaded, start, ids[length:])
                made |= costs
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
        facts["recommendations_measured"] = measured
        files = output.commit(f"{run.mode}.json", facts)
    if not run.quiet:
        _print_list(f"Key findings on {loaded.name}, {sample.source}", facts["findings"])
        advice = facts["recommendations_not_measured"]
        _print_list("Recommendations (heuristics, not yet measured)", advice)
        if measured:
            _print_list("The same, measured", measured)
        _print_list("Files", files)
        print(record.timing_line())


def _text(run: RunConfig, loaded, length: int | None, new_tokens: int):
    """The text of a run and its tokens, with those that are scored after it where they are."""
    from data import extraction, scoring, texts

    if run.measure:
        return scoring.long_enough(loaded, replace(run, num_samples=1), length)[0]
    sample = texts.choose(run)
    return sample, extraction.tokenise(loaded, sample, length, new_tokens)


def _measured(run: RunConfig, loaded, start, follows) -> tuple[dict, list[str]]:
    """What the recommendations of `analyze` really cost, and the trial of the heuristics."""
    import pandas as pd

    from compression.evaluate import Judge, summary
    from compression.prune_study import Study
    from data.scoring import Continuation

    study = Study(replace(run, trial=True))
    judge = Judge(start.cache, Continuation(loaded, start.past, follows))
    study.look(judge)
    rows = pd.DataFrame(judge.scores(study.methods))
    return study.tables(rows, summary(rows)), study.verdict(rows, summary(rows))


def _study(module: str, run: RunConfig) -> None:
    """A mode that compresses: prefill each text once, score all methods on it, draw, deliver."""
    import pandas as pd

    from compression.evaluate import as_records, summary
    from compression.learned import leak
    from data import models, scoring
    from data.record import RunRecord
    from visualization.output import OutputFolder

    study = import_module(f"compression.{module}").Study(run)
    with OutputFolder(run.output_dir) as output, RunRecord(run, STARTED) as record:
        with record.phase("load"):
            loaded = models.load(run)
        with record.phase("text"):
            texts = scoring.long_enough(loaded, study.run, study.context)
            apart = [sample for sample, _ in texts]
            others = scoring.others(loaded, apart, study.context, study.n_learned)
            too_good = leak(apart) if study.calibrates else []
        scored = pd.DataFrame(_scored(study, loaded, texts, others, record))
        made = study.tables(scored, summary(scored))
        sample = texts[0][0]
        _draw(output, record, made, loaded, sample, study.context, len(texts))
        facts = record.manifest(loaded, sample, study.context)
        facts["texts"] = [sample.name for sample, _ in texts]
        facts["calibration_texts"] = [sample.name for sample, _ in others]
        facts["verdict"] = [*too_good, *study.verdict(scored, summary(scored))]
        facts["summary"] = as_records(summary(scored))
        files = output.commit(f"{run.mode}.json", facts)
    if not run.quiet:
        _print_list(f"{study.title} on {loaded.name}, {sample.source}", facts["verdict"])
        for title, text in study.continued():
            print(f"{title}:\n  {text}\n")
        _print_list("Files", files)
        print(record.timing_line())
    if study.refused():
        raise UsageError(study.refused())


def _scored(study, loaded, texts: list, others: list, record) -> list[dict]:
    """The rows of all methods on all texts, after the study has learned what it needs to."""
    from compression.evaluate import Judge
    from data import extraction, needle
    from data.rows import Rows, model_identity
    from data.scoring import Continuation

    def judge_of(context, follows) -> Judge:
        with record.phase("prefill"):
            start = extraction.prefill(loaded, context, probe=study.probes)
        with record.phase("scoring"):
            return Judge(start.cache, Continuation(loaded, start.past, follows))

    with record.phase("calibration"):
        study.prepare(_learned(loaded) if study.calibrates else None)
        for sample, ids in others:
            study.learn(extraction.prefill(loaded, ids).cache, sample.name)
    identity = model_identity(loaded) if study.keeps_rows else ""
    n, rows = study.context, []
    for sample, ids in texts:
        named = {"text_source": sample.source, "index": sample.index, "title": sample.title}
        kept = Rows(identity, ids, n, loaded.device) if study.keeps_rows else None
        if rows and kept and kept.complete(study.methods):
            rows += [named | kept.get(method) for method in study.methods]
            continue
        judge = judge_of(ids[:n], ids[n:])
        with record.phase("scoring"):
            if not rows:
                study.look(judge)
            rows += [named | row for row in judge.scores(study.methods, kept)]
    for each in needle.needles(loaded, texts[0][1], n) if study.seeks else ():
        judge = judge_of(each.context, each.follows)
        with record.phase("scoring"):
            study.find(judge, each.depth, each.n_answer)
    return rows


def _learned(loaded, keep: bool = False):
    """What is stored once for a model, learned on the first use."""
    from compression.learned import learned
    from data.rows import model_identity

    return learned(loaded, model_identity(loaded), keep)


def calibrate(run: RunConfig) -> None:
    """Learn what `coded` stores once for a model; other modes do so by themselves."""
    from data import models

    loaded = models.load(run)
    side = _learned(loaded, keep=True)
    if not run.quiet:
        print(f"{loaded.name} is calibrated, on {side.learned_from}.")


def store(run: RunConfig) -> None:
    """Keep the compressed cache of a prompt in a file, or go on from one."""
    from compression import prompts
    from data import models
    from data.rows import model_identity

    prompts.refuse(run)
    loaded = models.load(run)
    identity = model_identity(loaded)
    if run.load_compressed is not None:
        print(prompts.go_on(run, loaded, identity))
        return
    said = prompts.save(run, loaded, identity)
    if not run.quiet:
        print("\n".join(said))


def _draw(output, record, made: dict, loaded, sample, n_tokens: int, n_texts: int = 1) -> None:
    """Pictures and tables of a run, each naming the model and the text."""
    from visualization.catalogue import PICTURES

    more = "" if n_texts < 2 else f" (first of {n_texts} texts)"
    about = f"{loaded.name} · {sample.name}{more} · {n_tokens} tokens"
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
    from data.listing import listing

    for line in listing(run):
        print(line)


MODES = {
    "analyze": analyze,
    "analyze_generation": analyze_generation,
    "analyze_similarity": partial(_study, "similarity_study"),
    "tucker": partial(_study, "tucker_study"),
    "compress": partial(_study, "compress_study"),
    "prune": partial(_study, "prune_study"),
    "compare": partial(_study, "compare_study"),
    "calibrate": calibrate,
    "store": store,
    "list_samples": list_samples,
}


def _terminate(*_) -> None:
    raise SystemExit(143)  # a kill cleans up as Ctrl-C does


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    try:
        config_check.check()
        flags = vars(flag_parser(MODES).parse_args(arguments))
        run = RunConfig(**{f.name: flags[f.name] for f in fields(RunConfig)})
        terminal.start(run.quiet)
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
    terminal.usable_streams()
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
