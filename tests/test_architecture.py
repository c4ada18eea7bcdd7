"""The arrows between packages point one way; see the layout in the README."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"data", "analysis", "compression", "visualization"}
# Who may import which packages of ours, and which libraries a package does not know.
MAY_IMPORT = {
    "config.py": set(),
    "data": {"config", "data"},
    "analysis": {"config", "analysis", "data.cache", "data.threads"},
    "compression": {
        "config",
        "compression",
        "analysis",
        "data.cache",
        "data.rotary",
        "data.extraction",
        "data.models",
        "data.resume",
        "data.rows",
        "data.texts",
        "data.scoring",
        "data.sensitivity",
    },
    "visualization": {"config", "visualization"},
}
UNKNOWN = {
    "config.py": {"torch", "transformers", "datasets", "matplotlib", "pandas"},
    "data": {"matplotlib", "seaborn", "pandas"},
    "analysis": {"transformers", "datasets", "matplotlib", "seaborn"},
    "compression": {"transformers", "datasets", "matplotlib", "seaborn"},
    "visualization": {"torch", "transformers", "datasets"},
}
SOURCES = [
    (owner, file)
    for owner in MAY_IMPORT
    for file in ([ROOT / owner] if owner.endswith(".py") else sorted((ROOT / owner).rglob("*.py")))
]


def imports(file: Path) -> set[str]:
    """Full dotted names that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize(("owner", "file"), SOURCES, ids=lambda x: getattr(x, "name", x))
def test_imports_point_forward(owner, file):
    for name in imports(file):
        if name.split(".")[0] in PACKAGES | {"config", "main"}:
            assert within(name, MAY_IMPORT[owner]), f"{file.name} imports {name}"
        assert name.split(".")[0] not in UNKNOWN[owner], f"{file.name} imports {name}"


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_starts_without_the_heavy_libraries():
    heavy = {"torch", "transformers", "pandas", "numpy", "matplotlib", "seaborn", "datasets"}
    assert not heavy & modules_after("import main; main.flag_parser(main.MODES)")


def test_listing_samples_loads_neither_torch_nor_transformers():
    code = "import main; main.main(['--mode', 'list_samples', '--no-use_wikitext'])"
    assert not {"torch", "transformers"} & modules_after(code)
