"""Text and model in, KVCache out: the only package that knows transformers and datasets."""
