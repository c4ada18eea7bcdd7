"""Ways to store a cache in fewer bytes, one idea to a file; their names stand in registry.py."""

import data.threads  # noqa: F401 (settled before a module here brings in torch)
