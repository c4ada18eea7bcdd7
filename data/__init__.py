"""Text and model in, KVCache out: the only package that knows transformers and datasets."""

from data import threads

threads.settle()  # before any module of ours brings in torch
