"""Which texts are scored, and which are learned from."""

import pytest
import torch

from config import UsageError
from data.corpora import reference_samples
from data.scored_texts import long_enough, others
from data.texts import Sample
from tests import families


@pytest.fixture(scope="module")
def loaded():
    return families.loaded("llama_gqa")  # 256 positions, one token per byte


def of_lengths(*lengths: int) -> list[Sample]:
    return [Sample(i, f"text {i}", "made up", "x" * n) for i, n in enumerate(lengths)]


def test_a_text_too_short_for_context_and_score_says_how_much_is_needed(loaded):
    with pytest.raises(UsageError, match=r"need a text of 47 tokens, the longest here has 46"):
        long_enough(loaded, of_lengths(46, 9), 40, 6, 1)
    ((sample, ids),) = long_enough(loaded, of_lengths(47), 40, 6, 1)
    assert len(ids) == 47 and sample.title == "text 0"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((250, 6, 1), "context of 250 tokens and 6 scored ones are beyond the 256 positions"),
        ((200, 6, 1, None, 56), "200 tokens and `show_generation` 56 are beyond the 256 positions"),
        ((200, 6, 1, "y" * 56), "200 tokens and 56 scored ones are beyond the 256 positions"),
        ((200, 6, 1, ""), "`continuation` has no tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(loaded, asked, says):
    with pytest.raises(UsageError, match=says):
        long_enough(loaded, of_lengths(500), *asked)


def test_as_many_positions_as_there_are_can_be_used(loaded):
    assert len(long_enough(loaded, of_lengths(500), 249, 6, 1)[0][1]) == 256
    assert long_enough(loaded, of_lengths(500), 200, 6, 1, None, 55)


def test_the_first_texts_that_are_long_enough_are_taken(loaded, caplog):
    chosen = long_enough(loaded, of_lengths(200, 9, 150, 120, 300), 100, 6, 3)
    assert [(sample.index, len(ids)) for sample, ids in chosen] == [(0, 107), (2, 107), (3, 107)]
    assert len(long_enough(loaded, of_lengths(200), 100, 6, 4)) == 1
    assert not caplog.messages  # a prompt is one text
    assert len(long_enough(loaded, of_lengths(9, 200), 100, 6, 4)) == 1
    assert caplog.messages == [
        "Only 1 of 2 texts are long enough for `num_samples` 4 (107 tokens): using those, and "
        "leaving out the shorter ones."
    ]


def test_a_given_continuation_follows_each_context(loaded):
    text = "ab" * 60
    (first, second) = long_enough(
        loaded, [Sample(i, "", "", text[i:]) for i in range(2)], 100, 6, 2, "and so on"
    )
    follows = torch.tensor(loaded.tokenizer("and so on")["input_ids"])
    for start, (_, ids) in enumerate((first, second)):
        context = torch.tensor(loaded.tokenizer(text[start:])["input_ids"][:101])
        assert torch.equal(ids, torch.cat([context, follows]))


def test_what_is_learned_from_is_none_of_the_scored_texts(loaded):
    corpus = reference_samples()
    assert [s for s, _ in others(loaded, corpus[:2], 50, 3)] == list(corpus[2:5])
    copied = Sample(7, "a copy", "file", corpus[0].text)  # the same text under another name
    ((sample, ids),) = others(loaded, [copied], 50, 1)
    assert sample == corpus[1] and len(ids) == 50
    assert others(loaded, corpus, 50, 0) == []
    with pytest.raises(UsageError, match="lower `context_tokens`"):
        others(loaded, [], 10**7, 1)
