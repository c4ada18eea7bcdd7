"""Articles of WikiText's raw files, as they stand there or as people write.

WikiText keeps the spacing of an old tokenizer: `the county 's well @-@ known fair , in 1901`. No
text that anybody compresses looks like that, and models are less sure of it.
"""

import re
from pathlib import Path

from config import UsageError
from data.texts import Sample

TITLE = re.compile(r"^ = [^=\n].*[^=\n] = \n", re.M)
HEADING = re.compile(r"^(= )+(.*?)( =)+$")
UNSPACED = (  # in this order
    (re.compile(r" @(.)@ "), r"\1"),
    (re.compile(r" ([,.;:?!%)\]])"), r"\1"),
    (re.compile(r"([(\[$£€]) "), r"\1"),
    (re.compile(r"(\w) '(s|t|re|ve|ll|d|m)\b"), r"\1'\2"),
    (re.compile(r'" ([^"]*?) "'), r'"\1"'),
)


def articles(file: Path, unspaced: bool = False) -> list[Sample]:
    """The texts between title lines; a line of the form of a title inside one cuts it in two."""
    text = file.read_text(encoding="utf-8")
    cuts = [title.start() for title in TITLE.finditer(text)]
    if not cuts:
        raise UsageError(
            f"--text_file {file} has no line of the form ` = Title = `",
            "give WikiText in its raw form",
        )
    parts = [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [
        Sample(
            number,
            part.split("\n")[0].strip(" ="),
            file.name,
            as_written(part) if unspaced else part,
        )
        for number, part in enumerate(parts)
    ]


def as_written(article: str) -> str:
    """The article with an empty line between paragraphs, its words spaced as people do."""
    paragraphs = (HEADING.sub(r"\2", line.strip()) for line in article.split("\n"))
    return "\n\n".join(_unspaced(paragraph) for paragraph in paragraphs if paragraph)


def _unspaced(paragraph: str) -> str:
    for spaced, written in UNSPACED:
        paragraph = spaced.sub(written, paragraph)
    return paragraph
