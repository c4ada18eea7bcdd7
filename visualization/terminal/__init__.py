"""The command line: what a person types, what is said of a run, and what is shown meanwhile."""

import sys

try:
    import config  # noqa: F401 (a person edits it, and all else reads it)
except Exception as error:
    line = getattr(error, "lineno", None)
    where = f"config.py, line {line}," if line else "config.py"
    said = f"{where} is no Python that runs ({type(error).__name__}: {error}): mend it."
    print(f"main.py: {said}", file=sys.stderr)
    raise SystemExit(2) from None
