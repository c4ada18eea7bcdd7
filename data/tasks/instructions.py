"""Several instructions at the head of a long prompt, each for a topic of its own: does the model
still follow them after what comes between? They can be lost one by one where a cache is made
smaller (Pitfalls of KV Cache Compression, arXiv 2510.00231). Checked by rule."""

from random import Random

from data.tasks.base import Exam, Filler, Maker, Question, words

HEAD = "You are an assistant. Follow these rules when you answer.\n{rules}\nBackground:\n{text}\n"
ASKED = "\nQuestion: Tell me something about {topic}.\nAnswer (follow the rule for {topic}):"
TOPICS = ("the weather", "music", "the sea", "mountains", "trains", "bread", "birds", "winter")
RULES = {
    "begins": 'When you are asked about {topic}, begin your answer with the word "{word}".',
    "is": 'When you are asked about {topic}, answer with the word "{word}" and nothing else.',
    "mentions": 'When you are asked about {topic}, mention the word "{word}" in your answer.',
    "is in capitals": "When you are asked about {topic}, WRITE YOUR ANSWER IN CAPITAL LETTERS.",
}
ROOM = 32  # tokens that an answer may take


def make(rng: Random, filler: Filler, size: int, n_tokens: int) -> Exam:
    topics = rng.sample(TOPICS, len(RULES))
    chosen = rng.sample(words("noun"), len(RULES))
    given = list(zip(RULES, topics, chosen, strict=True))
    rng.shuffle(given)
    rules = "\n".join(
        f"Rule {i}: {RULES[rule].format(topic=topic, word=word)}"
        for i, (rule, topic, word) in enumerate(given, 1)
    )
    questions = tuple(
        Question(ASKED.format(topic=topic), (word,), rule, ROOM) for rule, topic, word in given
    )
    return Exam(HEAD.format(rules=rules, text=" ".join(filler.some(rng, size))), questions)


TASKS: dict[str, Maker] = {"instructions": make}
