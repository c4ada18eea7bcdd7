"""KVCache in, tidy tables out: pure, no printing, no files, no pictures."""

import data.threads  # noqa: F401 (settled before a module here brings in torch)
