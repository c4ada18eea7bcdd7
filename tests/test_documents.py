"""Every command that the README and the pages beside it name runs, or is at least understood."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import config
from compression.studies import presets
from tests import families
from tests.commands import ROOT, run
from visualization import drawing
from visualization.catalogue import PICTURES
from visualization.report import reading
from visualization.report.pictures import explanations
from visualization.terminal import command_line

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = {
    "python main.py": [],
    "python compression/run_tucker_analysis.py": ["--mode", "tucker"],
    "python -m compression.run_tucker_analysis": ["--mode", "tucker"],
}
STANDS_IN = "the tiny model"
NOT_HERE = ("smollm2-135m", "Qwen/Qwen3-0.6B", "./model.Q4_K_M.gguf")  # the tiny model stands in
ELSEWHERE = ("--ray", "--help")  # see test_cluster.py and test_command_line.py
TASK_TOKENS = 500  # of a byte each: room for some of the tasks
EXAMINED = {"none": ("none",), "fp8": ("fp8",)}  # every setting is examined in test_exams.py
LONG = 512  # a larger number of tokens is cut
CUT = {"--sequence_length", "--prefill_chunk"}
SHORT = {
    "DEVICE": "cpu",
    "SEQUENCE_LENGTH": 48,
    "CONTEXT_TOKENS": 144,
    "TUCKER_SEQUENCE_LENGTH": 144,
    "SCORE_TOKENS": 4,
    "TRIAL_SCORE_TOKENS": 4,
    "NUM_SAMPLES": 1,
    "NEW_TOKENS": 4,
}
SIZES = {
    "max_position_embeddings": 65536,
    "num_hidden_layers": 5,
    "hidden_size": 96,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
OURS = ("essay", "readme", "chat")  # how files begin that `store` has made
SAVED = {"--load_compressed": "--save_compressed", "--load_cache": "--save_cache"}


def commands(page: Path) -> list[str]:
    """The lines of its shell blocks that start the toolkit, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    bare = (re.sub(r"\s+#.*", "", line) for line in lines)
    return [line for line in bare if line.startswith(tuple(STARTS))]


def inline(page: Path) -> list[str]:
    """Commands that stand in a sentence, between backticks."""
    said = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    return [line for line in said if line.startswith(tuple(STARTS)) and "<" not in line]


def arguments(command: str) -> list[str]:
    start = next(each for each in STARTS if command.startswith(each))
    ours, _, _ = command.removeprefix(start).partition(" | ")
    return STARTS[start] + shlex.split(ours)


def as_tried(command: str) -> tuple[str, ...]:
    """Its arguments on the tiny model that stands in for others, and on shorter texts."""
    given = [",".join(map(standing_in, each.split(","))) for each in arguments(command)]
    for flag in CUT & set(given):
        place = given.index(flag) + 1
        given[place] = str(min(int(given[place]), LONG // 2 if flag == "--prefill_chunk" else LONG))
    return tuple(given) if given != ["--model", STANDS_IN] else ("--mode", "analyze")


def standing_in(name: str) -> str:
    return STANDS_IN if name in NOT_HERE else name


def once_each(lines: dict[str, str]) -> dict[str, str]:
    """Without those that would be tried as one before them is."""
    first = {as_tried(line): line for line in reversed(lines)}
    return {line: page for line, page in lines.items() if first[as_tried(line)] == line}


ALL = once_each({line: page.name for page in PAGES[::-1] for line in commands(page) + inline(page)})


@pytest.fixture(scope="session")
def long_model(tmp_path_factory) -> Path:
    """A tiny model with the positions, layers and KV heads that pages speak of."""
    folder = tmp_path_factory.mktemp("documents") / "tiny"
    families.save(families.model("llama_gqa", SIZES), folder)
    return folder


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[object, ...], bytes]:
    """Pictures, by name, format and the columns of their tables."""
    return {}


@pytest.fixture(autouse=True)
def each_picture_is_drawn_once(drawn, monkeypatch):
    """Of how many tables it is drawn has its tests in test_visualization.py and others."""
    draw = drawing._draw

    def draw_once(stem, table, about, path):
        kind = (stem, *table.columns, Path(path).suffix)
        if kind not in drawn:
            draw(stem, table, about, path)
            drawn[kind] = Path(path).read_bytes()
        Path(path).write_bytes(drawn[kind])

    monkeypatch.setattr(drawing, "_draw", draw_once)


@pytest.fixture
def desk(long_model, tmp_path, monkeypatch, shared_cache) -> Path:
    """A folder with the files that the pages speak of; the default model is a tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "DEFAULT_MODEL", str(long_model))
    for name, value in SHORT.items():
        monkeypatch.setattr(config, name, value)
    text = "A river carries what the rain has taken from the hills, and gives it to the sea. " * 8
    (tmp_path / "essay.txt").write_text(text)
    (tmp_path / "essays").mkdir()
    for i in range(3):
        (tmp_path / "essays" / f"{i}.md").write_text(f"{i}. {text}")
    rows = [json.dumps({"text": f"{i}: {text}"}) for i in range(3)]
    (tmp_path / "documents.jsonl").write_text("\n".join(rows))
    (tmp_path / "README.md").write_text(text)
    for name in ("my-model", "large-model"):
        shutil.copytree(long_model, tmp_path / name)
    return tmp_path


def make_what_is_gone_on_from(given: list[str]) -> None:
    for load, save in SAVED.items():
        if load in given and (file := given[given.index(load) + 1]).startswith(OURS):
            chat = ["--methods", "coded_chunks"] if file.startswith("chat") else []
            assert run("--mode", "store", "--text_file", "essay.txt", save, file, *chat) == 0


def dump(given: list[str]) -> None:
    """What an engine leaves, in the layout that the command tells of it."""
    if "--cache_layout" not in given:
        return
    layout = json.loads(given[given.index("--cache_layout") + 1])
    folder = Path(given[given.index("--load_cache") + 1])
    folder.mkdir()
    shape = 2, 256, layout["kv_heads"] * layout["head_dim"]
    if layout["format"] == "vllm":
        for layer in range(2):
            kv = torch.randn(shape, dtype=torch.bfloat16)
            save_file({"kv_cache": kv}, folder / f"model.layers.{layer}.self_attn.safetensors")
        return
    chunk = torch.randn(2, layout["layers"], *shape[1:], dtype=torch.bfloat16)
    for name in layout["chunks"]:
        (folder / name).write_bytes(chunk.view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("command", ALL, ids=lambda command: f"{ALL[command]}: {command}")
def test_a_command_of_the_pages_runs(command, desk, monkeypatch):
    given = [each.replace(STANDS_IN, config.DEFAULT_MODEL) for each in as_tried(command)]
    if is_only_understood(given):
        assert understood(given)
        return
    if "tasks" in given:
        monkeypatch.setattr(config, "CONTEXT_TOKENS", TASK_TOKENS)
        monkeypatch.setattr(presets, "EXAMINED", EXAMINED)
    dump(given)
    if "report" in given:
        for folder in ("graphs", "earlier"):
            assert (
                run("--mode", "analyze", "--analysis_focus", "layers", "--output_dir", folder) == 0
            )
    make_what_is_gone_on_from(given)
    assert run(*given) == 0


def is_only_understood(given: list[str]) -> bool:
    """What starts a cluster or ends the program, and long exams: see test_exams.py."""
    long = "--tasks" in given or {"tasks", "--num_samples"} <= set(given)
    return long or bool(set(ELSEWHERE) & set(given))


def understood(given: list[str]) -> bool:
    """Whether the flags go together, with nothing started."""
    try:
        command_line.parse(given)
    except SystemExit as ended:  # after a help text
        return ended.code == 0
    return True


def test_the_documented_commands_stand_in_the_readme():
    """Those of the specification, which people know."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for focus in ("layers", "heads", "tokens", "embeddings"):
        assert f"python main.py --mode analyze --analysis_focus {focus}\n" in readme
    for mode in ("analyze", "analyze_generation", "analyze_similarity", "compress"):
        assert f"python main.py --mode {mode}\n" in readme
    assert "--sequence_length 512 --embedding_rank 32 --token_rank 32" in readme
    assert "python main.py --mode prune --prune_layers 0,1,2" in readme
    assert "python main.py --use_wikitext --wikitext_index 2" in readme


def test_the_page_of_pictures_is_what_the_explorer_says():
    assert (ROOT / "docs/pictures.md").read_text(encoding="utf-8") == reading.page()
    assert set(explanations()) >= {stem for stem in PICTURES if "bits_and_errors" not in stem}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for place in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, heading = place.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), place
        if heading:
            assert heading in anchors(target.read_text(encoding="utf-8")), place


def anchors(text: str) -> set[str]:
    """Where a link can lead within a page, as GitHub names its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
