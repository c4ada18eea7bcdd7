"""Bad inputs over all modes are refused in one sentence, and nothing is lost; see tests/hostile."""

from collections import Counter

import pytest

from tests.hostile.case import USUAL, Case
from tests.hostile.cases import CASES
from tests.hostile.laws import outcome
from tests.hostile.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    return Sandbox(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_refused_in_one_sentence_and_nothing_is_lost(case: Case, sandbox):
    came = outcome(case, sandbox)
    assert came.broken(case) == [], f"{came.code}: {came.said}"


# Of the others there are cases that come as far as their results.
WORKING = ("analyze_generation", "analyze_similarity", "compress", "store", "list_samples")


@pytest.mark.parametrize("mode", WORKING)
def test_what_is_refused_is_not_the_rest_of_the_command(mode, sandbox):
    flags = ("--save_compressed", "new.kv") if mode == "store" else ()
    came = outcome(Case(mode, flags, (), code=0), sandbox)
    assert came.code == 0 and came.said == "" and "Traceback" not in came.printed


def test_there_are_enough_of_every_mode():
    assert len(CASES) >= 100 and len({case.name for case in CASES}) == len(CASES)
    of_mode = Counter(case.mode for case in CASES)
    assert min(of_mode[mode] for mode in USUAL) >= 10, of_mode
    assert any(case.script for case in CASES)
