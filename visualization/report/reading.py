"""docs/pictures.md, made of what the explorer says beside each picture.

python -m visualization.report.reading > docs/pictures.md
"""

import sys
from itertools import groupby

from visualization.report.pictures import explanations

HEAD = """# Reading the pictures

What each picture shows, how it is read, and when it misleads. `report.html` says the same beside
the pictures of a run, with what was found there. Each `x.png` has its table `x.csv` beside it.
This page is made by `python -m visualization.report.reading`; its text is in
`visualization/report/explanations.toml`.
"""
ROOMS = {
    "layers": "Layers",
    "heads": "KV heads",
    "tokens": "Tokens",
    "embeddings": "Embedding dimensions",
    "cache": "The cache itself",
    "similarity": "Similarity",
    "spectrum": "Energy spectra",
    "pruning": "Pruning",
    "compare": "Comparison",
    "tucker": "Tucker decomposition",
    "tasks": "Tasks",
    "models": "Over models",
    "": "In no folder, or in that of each mode",
}


def page() -> str:
    """Markdown."""
    said = sorted(explanations().items(), key=lambda each: list(ROOMS).index(_room(each[0])))
    parts = [HEAD]
    for room, pictures in groupby(said, key=lambda each: _room(each[0])):
        parts.append(f"## {ROOMS[room]}\n")
        parts += [_of(stem, words) for stem, words in pictures]
    return "\n".join(parts)


def _room(stem: str) -> str:
    return stem.rpartition("/")[0]


def _of(stem: str, words: dict[str, str]) -> str:
    return (
        f"### {words['title']}\n\n`{stem}.png`\n\n{words['shows']}\n\n"
        f"*How to read it.* {words['read']}\n\n*When it misleads.* {words['misleads']}\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
