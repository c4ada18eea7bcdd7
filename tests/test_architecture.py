"""The house: every file imports only what its room may (rooms.py), and what starts stays light."""

import ast
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, modules_after
from tests.rooms import HEAVY, OURS, ROOMS, THREADS

FILES = [
    file
    for package in ("data", "analysis", "compression", "visualization")
    for file in sorted((ROOT / package).rglob("*.py"))
] + [ROOT / "config.py", ROOT / "main.py"]


def name_of(file: Path) -> str:
    """data/cache.py -> data.cache"""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """Full dotted names that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} imports by a relative name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


def room_of(name: str) -> str:
    """The narrowest room that a module is in; none for what is no part of the house."""
    return max((room for room in ROOMS if within(name, {room})), key=len, default="")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_imports_what_its_room_may(file):
    room = room_of(name_of(file))
    allowed, unknown = ROOMS[room]
    for name in imports(file):
        top = name.split(".")[0]
        may = within(name, {*allowed, THREADS}) or room_of(name) == room
        assert top not in OURS or may, f"{file.name} imports {name}"
        assert top not in unknown, f"{file.name} imports {name}"


def test_no_arrow_points_backwards():
    """Each room may import from rooms that stand above it, so that none can reach itself again."""
    order = list(ROOMS)
    for room, (allowed, _) in ROOMS.items():
        for name in allowed - {room}:
            assert order.index(room_of(name)) < order.index(room), f"{room} imports {name}"


def test_every_room_is_there():
    assert {room_of(name_of(file)) for file in FILES} == set(ROOMS)


def test_the_command_line_is_short():
    assert len((ROOT / "main.py").read_text().splitlines()) <= 200


def test_no_module_of_compression_hides_one_of_the_standard_library():
    """Run as a script, compression/run_tucker_analysis.py has its folder first on the path."""
    assert not {f.stem for f in (ROOT / "compression").glob("*.py")} & sys.stdlib_module_names


def test_no_test_imports_another_test():
    for file in sorted((ROOT / "tests").glob("*.py")):
        assert not [n for n in imports(file) if n.startswith("tests.test_")], file.name


def test_what_starts_a_run_and_what_writes_for_it_is_light():
    code = """if True:
        import main
        from compression import run_tucker_analysis
        from data import chosen_texts, sources, writing
        from visualization import delivery
        from visualization.terminal import command_line, listing, notices, record
    """
    loaded = modules_after(code)
    assert {"main", "visualization"} <= loaded and not HEAVY & loaded


def test_help_is_there_before_anything_that_only_a_run_takes():
    code = """if True:
        import main
        try:
            main.main(["--help"])
        except SystemExit:
            pass
    """
    loaded = modules_after(code)
    assert {"main", "visualization"} <= loaded
    assert not (HEAVY | {"rich", "tqdm", "argcomplete", "platformdirs"}) & loaded


def test_listing_samples_loads_neither_torch_nor_transformers():
    code = "import main; main.main(['--mode', 'list_samples', '--no-use_wikitext'])"
    assert not {"torch", "transformers"} & modules_after(code)
