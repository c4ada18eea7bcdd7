"""All bad inputs, in the order of the table."""

from tests.hostile import faults, flag_values, ignored_flags, models, outputs, scale, stores, texts

PARTS = (ignored_flags, flag_values, texts, models, outputs, stores, scale, faults)
CASES = tuple(case for part in PARTS for case in part.CASES)
