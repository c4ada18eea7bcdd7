"""Tasks made by rule: what they ask can be told from what they say, they are the same again for a
seed, and checks tell right from wrong."""

import re
from collections import Counter
from random import Random

import pytest

from data.tasks import word_counts
from data.tasks.base import CHECKS, Filler, Question, fitted, scattered, words
from data.tasks.catalogue import TASKS

FILLER = Filler.of("a text", ["One is here. Two is there! Is three?  Four\n\nlines. " * 3])
LENGTH = 6000
RULER = (
    *(f"niah_{hay}_{i}" for hay in ("single", "multikey") for i in (1, 2, 3)),
    *("niah_multivalue", "niah_multiquery", "variable_tracking", "common_words", "frequent_words"),
)
every_task = pytest.mark.parametrize("name", TASKS)


def made(name, seed="0", n=LENGTH):
    return fitted(TASKS[name], f"{name} {seed}", FILLER, n, len)


def test_the_eleven_tasks_of_ruler_that_rules_can_make_are_there():
    assert set(RULER) < set(TASKS) and len(RULER) == 11


@every_task
def test_a_seed_makes_the_same_again_and_another_another(name):
    assert made(name) == made(name) and made(name) != made(name, "1")


@every_task
def test_a_context_is_as_long_as_fits(name):
    """One more of what it is filled with would be too much."""
    context = made(name).context
    longest = max(len(s) for s in (*FILLER.sentences, *context.split("\n")[1:-2], "0" * 200))
    assert LENGTH - longest - 1 <= len(context) <= LENGTH
    assert made(name, n=50) is None


@every_task
def test_the_context_does_not_know_the_questions(name):
    exam = made(name)
    for question in exam.questions:
        assert question.asked not in exam.context
        assert question.asked.strip().split(".")[0] not in exam.context
    assert len({question.asked for question in exam.questions}) == len(exam.questions)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("niah")])
def test_a_needle_is_hidden_once_and_found_by_its_key(name):
    exam = made(name)
    found = re.findall(r"magic \w+ for (\S+) is: (\S+)\.", exam.context)
    found = found or re.findall(r"magic \w+s for (\S+) is: (\S+)\.", exam.context)
    assert len(found) == len({value for _, value in found})
    for question in exam.questions:
        keys = re.search(r" for (.+?) mentioned", question.asked)[1]
        asked = set(re.split(r", and |, ", keys))
        assert tuple(value for key, value in found if key in asked) == question.answers


def test_haystacks_are_what_their_names_say():
    assert "The grass is green." in made("niah_single_1").context
    for name in ("niah_single_2", "niah_single_3", "niah_multivalue"):
        assert all(sentence in made(name).context for sentence in FILLER.sentences)
    lines = made("niah_multikey_2").context.strip().split("\n")
    assert all(line.startswith("One of the special magic numbers for") for line in lines[1:])
    assert re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-4", made("niah_multikey_3").questions[0].asked)
    counts = {name: len(made(name).questions) for name in TASKS}
    assert counts["niah_single_1"] == 1 and counts["niah_multikey_1"] == 4
    assert len(made("niah_multivalue").questions[0].answers) == 4


def test_chains_are_followed_to_all_of_their_variables():
    exam = made("variable_tracking")
    values = {}
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", exam.context):
        values[name] = values.get(value, value)  # whatever it is set to stands ahead of it
    for question in exam.questions:
        value = re.search(r"assigned the value (\d+) in", question.asked)[1]
        assert [name for name, of in values.items() if of == value] == list(question.answers)
    assert len(values) == 10


@pytest.mark.parametrize("n", [1500, 6000, 20_000])
def test_the_words_asked_for_are_those_that_occur_most(n):
    common = fitted(TASKS["common_words"], "0", FILLER, n, len)
    counts = Counter(re.findall(r"\d+\. (\w+)", common.context))
    (question,) = common.questions
    assert {word for word, _ in counts.most_common(10)} == set(question.answers)
    ordered = [count for _, count in counts.most_common()]
    assert ordered[9] > ordered[10]
    frequent = fitted(TASKS["frequent_words"], "0", FILLER, n, len)
    text = frequent.context.split("coded word. ")[1].split()
    counts = Counter(text)
    ranked = [word for word, _ in counts.most_common(5)]
    assert ranked[0] == word_counts.DOTS
    assert tuple(ranked[1:4]) == frequent.questions[0].answers
    assert counts[ranked[3]] > counts[ranked[4]]


def test_instructions_come_first_and_each_has_its_topic():
    exam = made("instructions")
    rules = exam.context.split("Background:")[0]
    assert rules.count("When you are asked about") == len(exam.questions) == 4
    assert {q.rule for q in exam.questions} == set(CHECKS) - {"holds all"}
    for question in exam.questions:
        topic = re.search(r"something about (.+)\.", question.asked)[1]
        (line,) = [line for line in rules.split("\n") if f"about {topic}," in line]
        assert question.rule == "is in capitals" or question.answers[0] in line


@pytest.mark.parametrize(
    ("rule", "answers", "right", "wrong"),
    [
        ("holds all", ("12", "ab"), " AB and 12.", "neither"),
        ("begins", ("fox",), ' "Fox, the animal', " A fox"),
        ("begins", ("fox",), "fox", "foxes run"),
        ("is", ("fox",), " Fox.\nMore text", "fox trot"),
        ("mentions", ("fox",), "the Fox ran", "the foxes\nfox"),
        ("is in capitals", ("fox",), "THE SEA IS 3 M", "THE SEa IS"),
        ("is in capitals", ("fox",), "ABC", "12 34"),
    ],
)
def test_checks(rule, answers, right, wrong):
    question = Question("", answers, rule)
    assert (question.score(right), question.score(wrong)) == (1, 0)


def test_half_of_the_answers_are_half_right():
    assert Question("", ("12", "34")).score("it is 34") == 0.5


def test_facts_among_lines_keep_their_order_and_nothing_is_lost():
    lines, hidden = [f"l{i}" for i in range(7)], ["a", "b", "c"]
    for seed in range(50):
        mixed = scattered(Random(seed), lines, hidden)
        assert [x for x in mixed if x in hidden] == hidden
        assert [x for x in mixed if x not in hidden] == lines


def test_filler_goes_on_from_its_beginning():
    assert FILLER.sentences[:4] == ("One is here.", "Two is there!", "Is three?", "Four lines.")
    some = FILLER.some(Random(3), 30)
    start = FILLER.sentences.index(some[0])
    assert some == [FILLER.sentences[(start + i) % 12] for i in range(30)]


def test_words_are_plain():
    assert all(re.fullmatch("[a-z]{3,}", w) for part in ("noun", "verb") for w in words(part))
    assert len(words("noun")) > 5000 and len(words("adjective")) > 500
