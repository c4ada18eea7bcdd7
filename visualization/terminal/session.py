"""What a command has at hand beside its flags."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from visualization.terminal.flags import as_flags
from visualization.terminal.progress import Progress, rounded
from visualization.terminal.results import Results
from visualization.terminal.streams import escaped

if TYPE_CHECKING:  # it knows where corpora and tokenizers are
    from visualization.terminal.listing import Listing


@dataclass(frozen=True)
class Session:
    """workers: processes that draw while the model works, 0 to draw in this one."""

    progress: Progress
    results: Results
    workers: int = 0

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self.progress.phase(name)

    def of_one_model(self) -> "Session":
        """For one model of several, whose results are a part of those of this."""
        return replace(self, results=self.results.of_one_model())

    def end(self, title: str, lines: Sequence[str], **facts: Any) -> None:
        """What a command without pictures has found out, in sentences; title: of them as JSON."""
        said = [as_flags(line) for line in lines]
        self.done(findings={title: said}, **facts)
        self.results.say(escaped("\n".join(said)))

    def end_with_text(
        self, title: str, generated: str, lines: Sequence[str] = (), **facts: Any
    ) -> None:
        """What the model says is what the command is for; lines: what was stored beside it."""
        said = [as_flags(line) for line in lines]
        stored = {"findings": {"Stored": said}} if said else {}
        self.done(generated={title: generated}, **stored, **facts)
        self.results.say(escaped(generated), asked_for=True)
        for line in said:
            self.results.say(escaped(line))

    def list(self, listing: "Listing") -> None:
        """Each sample as soon as it is counted."""
        self.done()
        self.results.say(escaped(listing.head), asked_for=True)
        rows = []
        for row in listing.rows():
            rows.append(row)
            self.results.say(escaped(listing.line(row)), asked_for=True)
        for note in listing.notes:
            self.results.say(escaped(note), asked_for=True)
        self.results.add(table={"title": listing.source, "rows": rows})

    def done(self, **facts: Any) -> None:
        """All is there that is to be printed, after the time it took."""
        self.results.add(**facts, timings_s=rounded(self.progress.taken(), 3))
        self.progress.finish()
