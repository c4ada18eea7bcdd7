"""The rows of a run: those kept from an earlier one are taken, wherever that was done, and new ones
are kept as soon as they are there."""

from collections.abc import Sequence

from compression.evaluate import Scored
from compression.studies.rows import Rows
from compression.studies.tasks import OfMethod
from compression.studies.work import Work


def kept_or_measured(work: Work, tasks: Sequence[OfMethod]) -> list[Scored]:
    """What comes of each task."""
    kept = [Rows(work, task.ids, task.context, task.what) for task in tasks]
    rows = [each.get(task.method) for each, task in zip(kept, tasks, strict=True)]
    missing = [i for i, row in enumerate(rows) if row is None]
    for i, row in work.as_done([tasks[i] for i in missing], "score"):
        kept[missing[i]].put(tasks[missing[i]].method, row)
        rows[missing[i]] = row
    return [row for row in rows if row is not None]
