# PYTHON_ARGCOMPLETE_OK (see visualization/terminal/completion.py)
"""Command line: flags -> one mode. Start-up imports stay light: each mode imports what it needs."""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from data import signals
from visualization.terminal import (
    command_line,
    completion,
    endings,
    inputs,
    light,
    notices,
    storing,
    streams,
)
from visualization.terminal.flags import Given, arguments_of
from visualization.terminal.progress import Progress
from visualization.terminal.results import Results
from visualization.terminal.session import Session

if TYPE_CHECKING:
    from compression.studies.base import Study
    from compression.studies.places import Place
    from compression.studies.run import Outcome
    from visualization.delivery import Delivery
STARTED = time.perf_counter()


def analyze(given: Given, session: Session, **fixed: str) -> None:
    """How the cache of texts looks: the pictures of one focus, or of all."""
    from visualization.delivery import Delivery

    given = given | fixed
    with Delivery(given, session) as delivery:
        from compression.studies.analyze import Analysis
        from compression.studies.places import place

        analysis = Analysis(**arguments_of(Analysis, given))
        candidates = inputs.texts(given, session.phase)
        with (
            place(**arguments_of(place, given)) as where,
            where.work(inputs.model_arguments(given), session.phase) as work,
        ):
            inputs.all_is_imported()
            draw = partial(delivery.draw, work.model.name)
            looked = analysis.carry_out(work, candidates, given.get("continuation"), draw)
            model = work.model
        delivery.keep(looked.contents)
        files = delivery.commit(model, looked.texts, looked.facts)
    delivery.tell(looked.said(model.name), files, looked.continued)


def from_cache(given: Given, session: Session) -> None:
    """What the mode finds out from a saved cache, without its model or on top of it."""
    from visualization.delivery import Delivery

    with Delivery(given, session) as delivery:
        from compression.studies.from_cache import ASKED, run

        kind = ASKED[given["mode"]]
        asked, beside = kind(**arguments_of(kind, given)), inputs.beside(given, session.phase)
        found = run(asked, phase=session.phase, **beside, **arguments_of(run, given))
        delivery.draw(found.model.name, found.tables, [found.text])
        files = delivery.commit(found.model, [found.text], found.facts)
    delivery.tell(found.said, files, found.continued)
    if found.refused is not None:
        raise found.refused


def study(name: str, given: Given, session: Session) -> None:
    """A mode that compresses: `module.Class` of compression/studies, asked for by its flags; on one
    model, or on several and then over all of them."""
    from compression.studies.over_models import apart, each_alone, over_models
    from compression.studies.places import place
    from visualization.delivery import Delivery

    module, class_name = name.split(".")
    asked = getattr(import_module(f"compression.studies.{module}"), class_name)
    asked = asked(**arguments_of(asked, given))
    refusals = []
    with place(**arguments_of(place, given)) as where:
        if given["models"] is None:
            outcomes = [_carried_out(asked, given, session, where)]
        else:
            outcomes, refused = each_alone(
                apart(given["models"], given["output_dir"]),
                lambda one: _carried_out(asked, {**given, **one}, session.of_one_model(), where),
            )
            refusals.append(refused)
            with Delivery(given, session) as delivery:
                _draw_and_tell(delivery, asked, over_models(outcomes))
    refusals += [outcome.report.refused for outcome in outcomes]
    for refused in filter(None, refusals):
        raise refused


def _carried_out(asked: "Study", given: Given, session: Session, where: "Place") -> "Outcome":
    """A study on one model, delivered."""
    from compression.studies.run import carry_out
    from visualization.delivery import Delivery

    with Delivery(given, session) as delivery:
        candidates = inputs.texts(given, session.phase)
        with where.work(inputs.model_arguments(given), session.phase) as work:
            inputs.all_is_imported()
            outcome = carry_out(asked, work, candidates, given["continuation"])
        _draw_and_tell(delivery, asked, outcome)
    return outcome


def _draw_and_tell(delivery: "Delivery", asked: "Study", outcome: "Outcome") -> None:
    report, model, read = outcome.report, outcome.model, outcome.read
    delivery.draw(model.name, report.tables, read)
    files = delivery.commit(model, read, outcome.facts)
    title = f"{asked.title} on {model.name}, {read[0].source}, {outcome.rests_on}"
    delivery.tell({title: report.lines}, files, report.continued)


def calibrate(given: Given, session: Session) -> None:
    """Learn what `coded` stores once for a model; other modes do so by themselves."""
    loaded = inputs.model(given, session.phase)
    with session.phase("calibration"):
        from compression.coded.kept_calibrations import calibration_of

        calibration = calibration_of(loaded, must_keep=True)
    said = f"{loaded.name} is calibrated, on {calibration.learned_from}."
    session.end("Calibrated", [said], model=loaded.facts)


MODES: dict[str, Callable[[Given, Session], None]] = {
    "analyze": analyze,
    "analyze_generation": partial(analyze, analysis_focus="generation"),
    "analyze_similarity": partial(study, "similarity.SimilarityStudy"),
    "tucker": partial(study, "tucker.TuckerStudy"),
    "compress": partial(study, "compress.CompressStudy"),
    "prune": partial(study, "prune.PruneStudy"),
    "compare": partial(study, "compare.CompareStudy"),
    "tasks": partial(study, "task_study.TaskStudy"),
    "calibrate": calibrate,
    "store": storing.store,
    "report": light.report,
    "list_samples": light.list_samples,
}


def main(
    arguments: Sequence[str] | None = None, workers: int = 1, started: float | None = None
) -> int:
    """Run one command; returns its exit code. workers: processes that draw while the model
    works, 0 to draw in this one. started: `time.perf_counter()` when the process began."""
    typed = sys.argv[1:] if arguments is None else arguments
    results = Results(typed)

    def command() -> None:
        given = command_line.parse(typed)
        results.add(mode=given["mode"], settings=given)
        notices.start(results)
        run = from_cache if given.get("load_cache") is not None else MODES[given["mode"]]
        with Progress(started or time.perf_counter()) as progress:
            run(given, Session(progress, results, workers))

    with results.on_their_way():
        code = endings.exit_code(command, "--debug" in typed, results.refuse)
    return endings.exit_code(results.end) or code


if __name__ == "__main__":
    gc.disable()  # until all is imported, for nothing of that is garbage: a quarter of its time
    streams.usable()
    completion.answer()
    signals.listen()
    sys.exit(main(started=STARTED))
