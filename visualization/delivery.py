"""One run of the command line from its tables to its files and what is said of them: pictures are
drawn while the model works, and all results take their names together at the end."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data.texts import printable
from visualization.catalogue import PICTURES
from visualization.drawing import Drawing
from visualization.output import OutputFolder
from visualization.terminal import layout
from visualization.terminal.flags import as_flags
from visualization.terminal.record import RunRecord
from visualization.terminal.session import Session

if TYPE_CHECKING:
    import pandas as pd

    from visualization.main_tables import MainTable

REPORT = "report.html"
# Tables of all tokens of all texts, of which there is no mean
POOLED = ("spectrum/", "weight_magnitude_distribution")


class Model(Protocol):
    """What is told of the model of a run: data.loaded_model.LoadedModel."""

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

    def __init__(self, settings: Mapping[str, Any], session: Session) -> None:
        """settings: the flags of the run."""
        self.settings = settings
        self.phase = session.phase
        self._session = session
        self._picture_format = settings["format"]
        self.output = OutputFolder(settings["output_dir"], settings["text_file"])
        endings = (self._picture_format, "csv")
        pictures = (f"{stem}.{ending}" for stem in PICTURES for ending in endings)
        self.output.refuse_to_replace_the_text([*pictures, f"{settings['mode']}.json", REPORT])
        self._drawing = Drawing(session.workers)
        self._contexts = ExitStack()
        self._tables: dict[str, pd.DataFrame] = {}

    def __enter__(self) -> "Delivery":
        with ExitStack() as contexts:
            for context in (self.output, self._drawing):
                contexts.enter_context(context)
            self._contexts = contexts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()

    def draw(self, model: str, tables: "Mapping[str, pd.DataFrame]", texts: Sequence[Text]) -> None:
        """Write tables, and have the pictures drawn that they feed; each names the model and the
        texts that it is of: the mean of several where it has a column `texts`, else the first."""
        self._tables |= tables
        with self.phase("drawing"):
            for stem, table in tables.items():
                if stem in PICTURES and not len(table):
                    continue
                if stem in PICTURES:
                    together = "" if stem.startswith(POOLED) else "mean of "
                    about = f"{model} · {_of_texts(texts, 'texts' in table, together)}"
                    self.output.draw(self._drawing, stem, table, about, self._picture_format)
                named = {"model": model, **_of_which(texts, table)}
                named = {k: v for k, v in named.items() if k not in table}
                self.output.table(stem, table.assign(**named))

    def keep(self, contents: Mapping[str, bytes]) -> None:
        """Write files that are no tables, by their names."""
        for file, content in contents.items():
            self.output.content(file, content)

    def commit(self, model: Model, texts: Sequence[Text], facts: Mapping[str, Any]) -> list[str]:
        """Wait for the pictures, then give all files their names, the manifest last; returns the
        paths. facts: of the manifest, beside those that `RunRecord.manifest` knows; what it says of
        times ends before the report, which shows them."""
        with self.phase("drawing"):
            self.output.wait_for(self._drawing)
        self._record = RunRecord(self._session.progress.taken(), model.device_peak_nbytes)
        mode = self.settings["mode"]
        read = [text.facts for text in texts]
        manifest = self._record.manifest(mode, self.settings, model.facts, read)
        self._session.results.add(**manifest)
        with self.phase("report"):
            page = (REPORT, _explorer)
            files = self.output.commit(f"{mode}.json", {**manifest, **_shown(facts)}, page)
        self._record = self._record.longer(self._session.progress.taken())
        return files

    def tell(
        self,
        said: Mapping[str, Sequence[str]],
        files: Sequence[str],
        generated: Mapping[str, str] | None = None,
    ) -> None:
        """What a run has to say, by headings, its main table, what the model itself says, then
        files and times."""
        from visualization import main_tables

        self._session.progress.finish()
        results, generated = self._session.results, generated or {}
        table = main_tables.of(self._tables)
        results.add(
            findings={title: [as_flags(x) for x in lines] for title, lines in said.items()},
            table=None if table is None else table.facts,
            generated=generated,
            files=list(files),
        )
        paper = results.paper
        lines = layout.findings(said, paper)
        if table is not None:
            lines += layout.table(self._grid(table), paper)
        lines += layout.paragraphs(generated, paper)
        lines += ["Files:", *(f"  - {printable(file)}" for file in files), ""]
        results.say("\n".join([*lines, *layout.paragraph(self._record.timing_line(), paper)]))

    def _grid(self, table: "MainTable") -> layout.Grid:
        """The main table as text, with what is left out of it and where that is."""
        note = ""
        if table.n_left_out:
            file = self.output.folder / f"{table.choice.stem}.csv"
            note = f"{table.n_left_out} more of its {len(table.rows)} rows are in {file}."
        headers = [column.header for column in table.columns]
        cells = table.cells
        return layout.Grid(table.title, headers, cells, table.are_numbers, table.strong, note)


def _explorer(folder: Path, staged: Path) -> str:
    from visualization.report.page import build

    return build(folder, staged=staged)


def _of_which(texts: Sequence[Text], table: "pd.DataFrame") -> dict[str, str]:
    """Source, title and index of the text of a table, or of those that it is the mean of; of what
    has a row for each text, the source alone."""
    names = {"text_source": texts[0].source}
    if "index" in table or "text_index" in table:
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
