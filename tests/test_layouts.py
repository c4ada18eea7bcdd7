"""What docs/models.md says of each family of models is what comes out when it is tried."""

import pytest

from benchmarks import layouts
from tests import families
from tests.commands import ROOT

HEADING = "## Which models\n"


def stated() -> dict[str, list[str]]:
    """Model -> the cells of its row in docs/models.md."""
    section = (ROOT / "docs/models.md").read_text().split(HEADING)[1].split("\n#")[0]
    rows = [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {name: cells[1:] for cells in rows[2:] for name in cells[0].split(", ")}


@pytest.mark.parametrize("name", families.SETTINGS)
def test_what_is_said_of_a_family_holds(name):
    found = list(layouts.of_family(name).values())
    assert found == stated()[layouts.called(name)] and "wrong" not in found


def test_every_family_is_in_the_table_once():
    names = [layouts.called(name) for name in families.SETTINGS]
    assert len(set(names)) == len(names) and sorted(stated()) == sorted(names)


def test_families_of_the_same_outcomes_share_a_row():
    same = dict.fromkeys(layouts.COLUMNS, "yes") | {layouts.REFUSED: ""}
    other = same | {"evicted": "no", layouts.REFUSED: "the model hides nothing"}
    table = layouts.markdown(layouts.grouped({"b": same, "c": other, "a": same}))
    assert table.splitlines()[2:] == [
        "| a, b | yes | yes | yes | yes | yes | yes |  |",
        "| c | yes | yes | yes | no | yes | yes | the model hides nothing |",
    ]
