"""No test goes online by itself; the hub is out of reach unless a test says otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from tests import families


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a tiny random Llama (GQA, 2 layers) and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    families.save(families.model("llama_gqa"), folder)
    return folder
