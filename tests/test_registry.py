"""Methods by name: what there is not, or lacks, is refused in a sentence."""

import pytest

from compression.registry import METHODS, make, needs_calibration
from config import UsageError


def test_a_method_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="The method zip is not known: take one of none, coded, "):
        make("zip")
    with pytest.raises(UsageError, match="The method zip is not known"):
        make("composed", {"eviction": {"name": "recent"}, "then": {"name": "zip"}})
    with pytest.raises(UsageError, match="The method without a name is not known"):
        make("composed", {"eviction": {"keep": 0.5}, "then": {"name": "int8"}})


def test_a_setting_that_there_is_not_is_refused():
    with pytest.raises(UsageError) as refusal:
        make("recent", {"keep": 0.5, "score": "loud"})
    expected = "recent has no setting score: it takes keep, recent_tokens, sink_tokens."
    assert str(refusal.value) == expected
    with pytest.raises(UsageError, match=r"^none has no setting bits: it takes none\.$"):
        make("none", {"bits": 4})
    with pytest.raises(UsageError, match="int8 has no setting bits"):
        make("composed", {"eviction": {"name": "recent"}, "then": {"name": "int8", "bits": 4}})


@pytest.mark.parametrize("name", [name for name in METHODS if needs_calibration(name)])
def test_a_method_that_has_learned_nothing_is_refused(name):
    says = f"^{name} has to learn of the model on other texts first: give its calibration.$"
    with pytest.raises(UsageError, match=says):
        make(name)
    composed = {"eviction": {"name": "recent"}, "then": {"name": name}}
    assert needs_calibration("composed", composed)
    with pytest.raises(UsageError, match=says):
        make("composed", composed)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eviction": {"name": "snapkv"}}, "composed was given no then"),
        ({"eviction": "snapkv", "then": "kivi"}, "snapkv followed by kivi was asked for"),
        ({"eviction": {"keep": 0.5}, "then": {"name": "kivi"}}, "The method without a name"),
    ],
)
def test_half_a_composition_is_refused_in_a_sentence(settings, says):
    assert not needs_calibration("composed", settings)
    with pytest.raises(UsageError, match=says):
        make("composed", settings)


def test_nothing_is_needed_of_a_method_that_there_is_not():
    assert not needs_calibration("zip")
