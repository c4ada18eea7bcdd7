"""Command line: flags -> one mode; the only place that prints results. Start-up imports stay light:
each mode imports what it needs."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from data import signals
from visualization.terminal import command_line, endings, flags, inputs, notices, streams
from visualization.terminal.flags import Given, arguments_of
from visualization.terminal.streams import tell

if TYPE_CHECKING:
    from compression.studies.base import Study
    from compression.studies.places import Place
    from compression.studies.run import Outcome
    from visualization.delivery import Delivery
STARTED = time.perf_counter()


def analyze(given: Given, workers: int, **fixed: str) -> None:
    """How the cache of texts looks: the pictures of one focus, or of all."""
    from visualization.delivery import Delivery

    given = given | fixed
    with Delivery(given, STARTED, workers) as delivery:
        from compression.studies.analyze import Analysis
        from compression.studies.places import place

        analysis = Analysis(**arguments_of(Analysis, given))
        candidates = inputs.texts(given, delivery.phase)
        with (
            place(**arguments_of(place, given)) as where,
            where.work(inputs.model_arguments(given), delivery.phase) as work,
        ):
            inputs.all_is_imported()
            draw = partial(delivery.draw, work.model.name)
            looked = analysis.carry_out(work, candidates, given.get("continuation"), draw)
            model = work.model
        files = delivery.commit(model, looked.texts, looked.facts)
    if not given["quiet"]:
        tell(delivery.told(looked.said(model.name), files, looked.continued))


def from_cache(given: Given, workers: int) -> None:
    """What the mode finds out from a saved cache, without its model."""
    from visualization.delivery import Delivery

    with Delivery(given, STARTED, workers) as delivery:
        from compression.studies.from_cache import ASKED, run

        kind = ASKED[given["mode"]]
        asked = kind(**arguments_of(kind, given))
        found = run(asked, phase=delivery.phase, **arguments_of(run, given))
        delivery.draw(found.model.name, found.tables, [found.text])
        files = delivery.commit(found.model, [found.text], found.facts)
    if not given["quiet"]:
        tell(delivery.told(found.said, files))
    if found.refused is not None:
        raise found.refused


def study(name: str, given: Given, workers: int) -> None:
    """A mode that compresses: `module.Class` of compression/studies, asked for by its flags; on one
    model, or on several and then over all of them."""
    from compression.studies.over_models import apart, each_alone, over_models
    from compression.studies.places import place

    module, class_name = name.split(".")
    asked = getattr(import_module(f"compression.studies.{module}"), class_name)
    asked = asked(**arguments_of(asked, given))
    refusals = []
    with place(**arguments_of(place, given)) as where:
        if given["models"] is None:
            outcomes = [_carried_out(asked, given, workers, where)]
        else:
            outcomes, refused = each_alone(
                apart(given["models"], given["output_dir"]),
                lambda one: _carried_out(asked, {**given, **one}, workers, where),
            )
            refusals.append(refused)
            _deliver(asked, given, workers, over_models(outcomes))
    refusals += [outcome.report.refused for outcome in outcomes]
    for refused in filter(None, refusals):
        raise refused


def _carried_out(asked: "Study", given: Given, workers: int, where: "Place") -> "Outcome":
    """A study on one model, delivered."""
    from compression.studies.run import carry_out
    from visualization.delivery import Delivery

    with Delivery(given, STARTED, workers) as delivery:
        candidates = inputs.texts(given, delivery.phase)
        with where.work(inputs.model_arguments(given), delivery.phase) as work:
            inputs.all_is_imported()
            outcome = carry_out(asked, work, candidates, given["continuation"])
        _draw_and_tell(delivery, asked, outcome)
    return outcome


def _deliver(asked: "Study", given: Given, workers: int, outcome: "Outcome") -> None:
    from visualization.delivery import Delivery

    with Delivery(given, STARTED, workers) as delivery:
        _draw_and_tell(delivery, asked, outcome)


def _draw_and_tell(delivery: "Delivery", asked: "Study", outcome: "Outcome") -> None:
    report, model, read = outcome.report, outcome.model, outcome.read
    delivery.draw(model.name, report.tables, read)
    files = delivery.commit(model, read, outcome.facts)
    if not delivery.settings["quiet"]:
        title = f"{asked.title} on {model.name}, {read[0].source}, {outcome.rests_on}"
        tell(delivery.told({title: report.lines}, files, report.continued))


def calibrate(given: Given, workers: int) -> None:
    """Learn what `coded` stores once for a model; other modes do so by themselves."""
    from compression.coded.kept_calibrations import calibration_of

    loaded = inputs.model(given)
    calibration = calibration_of(loaded, must_keep=True)
    if not given["quiet"]:
        tell(f"{loaded.name} is calibrated, on {calibration.learned_from}.")


def store(given: Given, workers: int) -> None:
    """Keep the cache of a prompt in a file, compressed or plain, or go on from one."""
    from compression import prompts
    from data import texts

    prompts.refuse(**arguments_of(prompts.refuse, given))
    loaded = inputs.model(given)
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


MODES: dict[str, Callable[[Given, int], None]] = {
    "analyze": analyze,
    "analyze_generation": partial(analyze, analysis_focus="generation"),
    "analyze_similarity": partial(study, "similarity.SimilarityStudy"),
    "tucker": partial(study, "tucker.TuckerStudy"),
    "compress": partial(study, "compress.CompressStudy"),
    "prune": partial(study, "prune.PruneStudy"),
    "compare": partial(study, "compare.CompareStudy"),
    "tasks": partial(study, "task_study.TaskStudy"),
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
        alone = given.get("load_cache") is not None
        (from_cache if alone else MODES[given["mode"]])(given, workers)

    return endings.exit_code(command, debug="--debug" in (arguments or sys.argv))


if __name__ == "__main__":
    gc.disable()  # until all is imported, for nothing of that is garbage: a quarter of its time
    streams.usable()
    signals.listen()
    sys.exit(main())
