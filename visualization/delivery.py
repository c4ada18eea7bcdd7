"""One run of the command line from its tables to its files: pictures are drawn while the model
works, the phases are timed, and all results take their names together at the end."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from visualization.catalogue import PICTURES
from visualization.drawing import Drawing
from visualization.output import OutputFolder
from visualization.terminal.flags import as_flags
from visualization.terminal.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd


# Tables of all tokens of all texts, of which there is no mean
POOLED = ("spectrum/", "weight_magnitude_distribution")


class Model(Protocol):
    """What is told of the model of a run: data.models.LoadedModel."""

    @property
    def facts(self) -> dict[str, str]: ...
    @property
    def device_peak_nbytes(self) -> int: ...


class Text(Protocol):
    """What is told of a text of a run: data.texts.TextRead. number: its place in its source."""

    @property
    def tokens_read(self) -> int: ...
    @property
    def number(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


class Delivery:
    """A context for one run; what was not committed when it ends is dropped."""

    def __init__(self, settings: Mapping[str, Any], started: float, workers: int = 0) -> None:
        """settings: the flags of the run. started: see `RunRecord`. workers: see `Drawing`."""
        self.settings = settings
        self.output = OutputFolder(settings["output_dir"], settings["text_file"])
        pictures = (f"{stem}.{ending}" for stem in PICTURES for ending in ("png", "csv"))
        self.output.refuse_to_replace_the_text([*pictures, f"{settings['mode']}.json"])
        self.record = RunRecord(started)
        self._drawing = Drawing(workers)
        self._contexts = ExitStack()

    def __enter__(self) -> "Delivery":
        with ExitStack() as contexts:
            for context in (self.record, self.output, self._drawing):
                contexts.enter_context(context)
            self._contexts = contexts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self.record.phase(name)

    def draw(self, model: str, tables: "Mapping[str, pd.DataFrame]", texts: Sequence[Text]) -> None:
        """Write tables, and have the pictures drawn that they feed; each names the model and the
        texts that it is of: the mean of several where it has a column `texts`, else the first."""
        with self.phase("drawing"):
            for stem, table in tables.items():
                if stem in PICTURES and not len(table):
                    continue
                if stem in PICTURES:
                    together = "" if stem.startswith(POOLED) else "mean of "
                    about = f"{model} · {_of_texts(texts, 'texts' in table, together)}"
                    self.output.draw(self._drawing, stem, table, about)
                named = {"model": model, **_of_which(texts, table)}
                named = {k: v for k, v in named.items() if k not in table}
                self.output.table(stem, table.assign(**named))

    def commit(self, model: Model, texts: Sequence[Text], facts: Mapping[str, Any]) -> list[str]:
        """Wait for the pictures, then give all files their names, the manifest last; returns the
        paths. facts: of the manifest, beside those that `RunRecord.manifest` knows."""
        with self.phase("drawing"):
            self.output.wait_for(self._drawing)
        self.record.close()
        self.record.device_peak_nbytes = model.device_peak_nbytes
        mode = self.settings["mode"]
        read = [text.facts for text in texts]
        manifest = self.record.manifest(mode, self.settings, model.facts, read)
        return self.output.commit(f"{mode}.json", {**manifest, **_shown(facts)})

    def told(
        self,
        said: Mapping[str, Sequence[str]],
        files: Sequence[str],
        generated: Mapping[str, str] | None = None,
    ) -> str:
        """What a run has to say, by headings, then what the model itself says, files and times."""
        lines = []
        for title, sentences in said.items():
            lines += [f"{title}:", *(f"  - {as_flags(line)}" for line in sentences), ""]
        for title, text in (generated or {}).items():
            lines += [f"{title}:", f"  {text}", ""]
        lines += ["Files:", *(f"  - {file}" for file in files), ""]
        return "\n".join([*lines, self.record.timing_line()])


def _of_which(texts: Sequence[Text], table: "pd.DataFrame") -> dict[str, str]:
    """Source, title and index of the text of a table, or of those that it is the mean of; of what
    has a row for each text, the source alone."""
    names = {"text_source": texts[0].source}
    if "index" in table:
        return names
    if len(texts) > 1 and ("texts" in table):
        which = f"{texts[0].number} to {texts[-1].number}"
        return {**names, "text_index": which, "text_title": f"{len(texts)} texts together"}
    return {**names, "text_index": texts[0].number, "text_title": texts[0].title}


def _of_texts(texts: Sequence[Text], of_all: bool, together: str) -> str:
    """Which texts a picture shows, and how many of their tokens; `together`, where it is of all."""
    first = texts[0]
    if len(texts) == 1 or not of_all:
        more = "" if len(texts) == 1 else f" (first of {len(texts)} texts)"
        return f"{first.name}{more} · {first.tokens_read} tokens"
    lengths = sorted(text.tokens_read for text in texts)
    each = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    which = f"{first.number} to {texts[-1].number}"
    return f"{together}{len(texts)} texts ({first.source} {which}) · {each} tokens each"


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with the sentences among them as a person at the command line reads them."""
    return {
        name: [as_flags(x) if isinstance(x, str) else x for x in fact]
        if isinstance(fact, list)
        else fact
        for name, fact in facts.items()
    }
