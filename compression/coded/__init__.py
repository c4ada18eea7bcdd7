"""The coder of our own: its method, what is learned once for a model, and the entropy coder."""

import data.threads  # noqa: F401 (settled before a module here brings in torch)
