"""The modes that load neither torch nor weights."""

from visualization.terminal.flags import Given, arguments_of
from visualization.terminal.session import Session


def report(given: Given, session: Session) -> None:
    """The page of what a folder holds."""
    from visualization.report.remade import remake

    with session.phase("report"):
        file = remake(**arguments_of(remake, given))
    session.end("Report", [f"Files:\n  - {file}"], files=[str(file)])


def list_samples(given: Given, session: Session) -> None:
    """The corpus that the other modes choose from."""
    from visualization.terminal.listing import listing

    session.list(listing(**arguments_of(listing, given)))
