"""What a run finds out: a study for each mode, the run that they share, and what it keeps."""

import data.threads  # noqa: F401 (settled before a module here brings in torch)
