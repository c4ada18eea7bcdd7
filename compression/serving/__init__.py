"""The codec where caches live: in a cache of transformers, and behind LMCache."""

import data.threads  # noqa: F401 (settled before a module here brings in torch)
