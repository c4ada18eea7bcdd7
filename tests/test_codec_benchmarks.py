"""What the benchmarks of the codec tell, on tiny models."""

import argparse

import numpy as np
import pytest

from benchmarks import codec, constraints, conversation
from compression.coded import kept_calibrations
from compression.coded.calibration import calibrate
from data import extraction
from data.corpora import reference_samples
from tests import caches, families


@pytest.fixture
def uncalibrated(monkeypatch):
    """Random gradients stand for those of other texts."""

    def calibration_of(loaded, must_keep=False):
        cache = extraction.prefill(loaded, families.token_ids(80)).cache
        return calibrate([caches.random_gradients(cache)], "random gradients")

    for module in (kept_calibrations, codec):
        monkeypatch.setattr(module, "calibration_of", calibration_of)


def numbers(line):
    return [
        int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdecimal()
    ]


def test_a_conversation_holds_less_at_rest_and_says_as_many_tokens(
    uncalibrated, tiny_model, capsys
):
    given = argparse.Namespace(
        model=str(tiny_model), turns=2, turn_tokens=300, new_tokens=4, step=1e-3
    )
    for kind in conversation.KINDS:
        conversation.chat(kind, given)
    lines = capsys.readouterr().out.splitlines()
    plain = [line for line in lines if line.startswith("plain      turn")]
    ours = [line for line in lines if line.startswith("compressed turn")]
    assert len(plain) == len(ours) == 2
    for one, other in zip(plain, ours, strict=True):
        tokens, in_turn, at_rest = numbers(other)
        assert numbers(one)[0] == tokens and at_rest < 0.6 * in_turn


def test_rates_are_told_of_our_chunks_and_of_what_stands_beside_them(
    uncalibrated, tiny_model, capsys
):
    given = codec.flags(["--context_tokens", "128", "--chunk_tokens", "64", "--repeat", "1"])
    given.threads, given.step = [1], 1e-3
    codec.report(str(tiny_model), reference_samples()[0], given)
    said = capsys.readouterr().out
    ours, zstd, deflate, fp8 = said.splitlines()[3:7]
    assert "in 2 chunks of 64" in said and "cast to fp8" in fp8 and "2.00 x" in fp8
    assert "zstd" in zstd and "DEFLATE" in deflate and "chunks, step 0.001" in ours
    assert "all chunks one by one" in said and "coded_fixed of the whole text" in said
    assert codec.main(["--models", str(tiny_model), "--context_tokens", "32"]) == 2


def test_a_ratio_lies_on_the_line_between_two_steps():
    points = [(0.004, 8.0), (0.001, 2.0)]
    assert constraints.ratio_at(0.002, points) == pytest.approx(4.0)
    assert constraints.ratio_at(0.004, points) == pytest.approx(8.0)
    assert np.isnan(constraints.ratio_at(0.005, points))
