"""Every task by name."""

from data.tasks import instructions, niah, tracking, word_counts
from data.tasks.base import Maker

TASKS: dict[str, Maker] = {
    **niah.TASKS,
    **tracking.TASKS,
    **word_counts.TASKS,
    **instructions.TASKS,
}
