"""The lines of docs/codec.md, run as they stand there."""

import os
import re

import pytest
import torch

from compression.coded import kept_calibrations
from compression.coded.calibration import calibrate
from data import extraction
from tests import caches, families
from tests.commands import ROOT

PAGE = (ROOT / "docs" / "codec.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TEXT = "The cache of a model holds keys and values. " * 3


def random_calibration(loaded, must_keep=False):
    cache = extraction.prefill(loaded, families.token_ids(80)).cache
    return calibrate([caches.random_gradients(cache)], "random gradients")


def test_the_lines_of_the_page_run(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kept_calibrations, "calibration_of", random_calibration)
    monkeypatch.chdir(tmp_path)
    names = {"text": TEXT}
    for block in BLOCKS:
        if "lmcache" in block and os.environ.get("CI") != "true":  # there the set-up has it
            pytest.importorskip("lmcache.v1.distributed.serde.factory", exc_type=ImportError)
        exec(block.replace("smollm2-135m", str(tiny_model)), names)
    assert len(BLOCKS) == 5
    for once, again in zip(names["keys"], names["keys_again"], strict=True):
        assert once.shape == again.shape
        assert (once - again).norm() < 0.02 * once.norm()
    n = names["answer"].shape[1] - 1  # the last token is not cached
    assert names["past"].get_seq_length() == n
    assert capsys.readouterr().out.strip().isdecimal()
    assert torch.equal(names["answer"][:, : names["ids"].shape[1]], names["ids"])
