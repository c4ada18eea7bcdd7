"""The first ids of a text are those of the whole text, and little of it is read for them."""

import random
from functools import partial

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from data.corpora import reference_samples
from data.token_ids import CHARACTERS, MARGIN, first_ids
from tests import families

CORPUS = [sample.text[:20_000] for sample in reference_samples()[:6]]


def trained(model, trainer, pre_tokenizer, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    sizes = {"vocab_size": 800, "show_progress": False}
    byte_level = pre_tokenizers.ByteLevel.alphabet()
    unknown = {"unk_token": "[UNK]", "special_tokens": ["[UNK]"]}
    return {
        "byte-level BPE": trained(
            models.BPE(),
            trainers.BpeTrainer(initial_alphabet=byte_level, **sizes),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ),
        "WordPiece": trained(
            models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100),
            trainers.WordPieceTrainer(special_tokens=["[UNK]"], **sizes),
            pre_tokenizers.BertPreTokenizer(),
            normalizers.BertNormalizer(),
        ),
        "Unigram": trained(
            models.Unigram(),
            trainers.UnigramTrainer(**unknown, **sizes),
            pre_tokenizers.Metaspace(),
            normalizers.NFKC(),
        ),
        "Unigram, one piece": trained(  # nothing is split before: words run into each other
            models.Unigram(),
            trainers.UnigramTrainer(**unknown, **sizes),
            pre_tokenizers.Metaspace(split=False),
        ),
        "BPE, one piece": trained(
            models.BPE(byte_fallback=True, unk_token="[UNK]"),
            trainers.BpeTrainer(special_tokens=["[UNK]"], **sizes),
            pre_tokenizers.Metaspace(),
        ),
    }


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).ids


def texts() -> dict[str, str]:
    some = random.Random(0)
    letters = "ab \n\u00e9\u05e9\u4e2d\U0001f600e\u0301"
    return {
        "prose": CORPUS[1],
        "blanks": "word" + " " * 9000 + "word " * 300,
        "one word": "x" * 9000,
        "two letters": "ab" * 5000,
        "a long word late": "a few words and then " * 8 + "unbroken" * 900 + " and an end" * 50,
        "any letters": "".join(some.choice(letters) for _ in range(9000)),
        "lines": "\n" * 7000 + "end",
        "accents": "e\u0301" * 4000,
    }


@pytest.mark.parametrize("name", texts())
@pytest.mark.parametrize("most", [1, 7, 64, 300])
def test_the_first_ids_are_those_of_the_whole_text(tokenizers, name, most):
    text = texts()[name]
    for kind, tokenizer in tokenizers.items():
        encode = partial(_ids, tokenizer)
        assert first_ids(encode, text, most) == encode(text)[:most], kind
        assert first_ids(encode, text) == encode(text), kind


def test_of_a_long_text_little_is_read():
    read = []

    def encode(part):
        read.append(len(part))
        return list(part.encode())

    text = "0123456789" * 2_000_000
    assert first_ids(encode, text, 64) == list(text[:64].encode())
    assert sum(read) < 4 * CHARACTERS * (64 + MARGIN)


def test_special_tokens_at_the_end_stay_at_the_end():
    assert first_ids(lambda part: [*part.encode(), 999], "x" * 5000, 10) == [120] * 10
    assert first_ids(lambda part: [*part.encode(), 999], "xyz", 10) == [120, 121, 122, 999]


def test_a_model_reads_text_through_them():
    loaded = families.loaded("llama_gqa")
    assert len(loaded.ids_of("x" * 10_000_000, 64)) == 64
    assert loaded.ids_of("xyz").tolist() == loaded.tokenizer("xyz")["input_ids"]
