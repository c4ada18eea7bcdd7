"""Command line: flags -> one mode; the only place that prints results. Start-up imports stay light:
each mode imports what it needs."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from visualization.terminal import command_line, endings, flags, notices, streams
from visualization.terminal.flags import Given, arguments_of
from visualization.terminal.streams import tell

if TYPE_CHECKING:
    from data.models import LoadedModel
    from data.texts import Sample
    from visualization.delivery import Delivery

STARTED = time.perf_counter()


def analyze(given: Given, workers: int) -> None:
    """How the cache of texts looks: the pictures of one focus, or of all."""
    from visualization.delivery import Delivery

    with Delivery(given, STARTED, workers) as delivery:
        from compression.studies.analyze import Analysis

        analysis = Analysis(**arguments_of(Analysis, given))
        loaded, candidates = _model_and_texts(given, delivery)
        draw = partial(delivery.draw, loaded.name)
        looked = analysis.run(loaded, candidates, given.get("continuation"), delivery.phase, draw)
        files = delivery.commit(loaded, looked.texts, looked.facts)
    if not given["quiet"]:
        tell(delivery.told(looked.said(loaded.name), files))


def analyze_generation(given: Given, workers: int) -> None:
    """The stages of generation alone, on the whole text where no length is given."""
    analyze(given | {"analysis_focus": "generation"}, workers)


def study(name: str, given: Given, workers: int) -> None:
    """A mode that compresses: `module.Class` of compression/studies, asked for by its flags."""
    from compression.studies.run import run
    from visualization.delivery import Delivery

    module, class_name = name.split(".")
    asked = getattr(import_module(f"compression.studies.{module}"), class_name)
    asked = asked(**arguments_of(asked, given))
    with Delivery(given, STARTED, workers) as delivery:
        loaded, candidates = _model_and_texts(given, delivery)
        outcome = run(asked, loaded, candidates, given["continuation"], delivery.phase)
        report, read = outcome.report, outcome.read
        delivery.draw(loaded.name, report.tables, read)
        files = delivery.commit(loaded, read, outcome.facts)
    if not given["quiet"]:
        title = f"{asked.title} on {loaded.name}, {read[0].source}, {outcome.rests_on}"
        tell(delivery.told({title: report.lines}, files, report.continued))
    if report.refused is not None:
        raise report.refused


def calibrate(given: Given, workers: int) -> None:
    """Learn what `coded` stores once for a model; other modes do so by themselves."""
    from compression.coded.kept_calibrations import calibration_of

    loaded = _loaded(given)
    calibration = calibration_of(loaded, must_keep=True)
    if not given["quiet"]:
        tell(f"{loaded.name} is calibrated, on {calibration.learned_from}.")


def store(given: Given, workers: int) -> None:
    """Keep the compressed cache of a prompt in a file, or go on from one."""
    from compression import prompts
    from data import texts

    prompts.refuse(**arguments_of(prompts.refuse, given))
    loaded = _loaded(given)
    if given["load_compressed"] is not None:
        tell(prompts.go_on(loaded, given["load_compressed"], given["new_tokens"]))
        return
    sample = texts.only_first(texts.candidates(**arguments_of(texts.candidates, given)))
    said = prompts.save(loaded, sample, **arguments_of(prompts.save, given))
    if not given["quiet"]:
        tell(flags.as_flags("\n".join(said)))


def list_samples(given: Given, workers: int) -> None:
    """The corpus that the other modes choose from; loads neither torch nor weights."""
    from visualization.terminal.listing import listing

    for line in listing(**arguments_of(listing, given)):
        tell(line)


def _loaded(given: Given) -> "LoadedModel":
    from data import models

    loaded = models.load(**arguments_of(models.load, given))
    gc.freeze()  # what was imported stays: nothing to look through again and again
    gc.enable()
    return loaded


def _model_and_texts(given: Given, delivery: "Delivery") -> "tuple[LoadedModel, Sequence[Sample]]":
    with delivery.phase("load"):
        loaded = _loaded(given)
    with delivery.phase("text"):
        from data import texts

        candidates = texts.candidates(**arguments_of(texts.candidates, given))
        texts.refuse_several_of_one(candidates, given["num_samples"])
        return loaded, candidates


MODES: dict[str, Callable[[Given, int], None]] = {
    "analyze": analyze,
    "analyze_generation": analyze_generation,
    "analyze_similarity": partial(study, "similarity.SimilarityStudy"),
    "tucker": partial(study, "tucker.TuckerStudy"),
    "compress": partial(study, "compress.CompressStudy"),
    "prune": partial(study, "prune.PruneStudy"),
    "compare": partial(study, "compare.CompareStudy"),
    "calibrate": calibrate,
    "store": store,
    "list_samples": list_samples,
}


def main(arguments: Sequence[str] | None = None, workers: int = 1) -> int:
    """Run one command; returns its exit code. workers: processes that draw while the model
    works, 0 to draw in this one."""

    def command() -> None:
        given = command_line.parse(arguments)
        notices.start(given.get("quiet", False))
        MODES[given["mode"]](given, workers)

    return endings.exit_code(command, debug="--debug" in (arguments or sys.argv))


if __name__ == "__main__":
    gc.disable()  # until all is imported, for nothing of that is garbage: a quarter of its time
    streams.usable()
    endings.clean_up_when_killed()
    sys.exit(main())
