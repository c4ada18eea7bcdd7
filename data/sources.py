"""What a model's name means: where its files are, and what outputs call it. Knows files, not
torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import config
from config import UsageError
from data import default_model

Arguments = dict[str, str | bool]  # of `from_pretrained`


@dataclass(frozen=True)
class Source:
    """Where a model is read from: arguments for `from_pretrained`, and how outputs name it."""

    arguments: Arguments
    name: str
    revision: str

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine; None for a hub id."""
        place = Path(str(self.arguments["pretrained_model_name_or_path"]))
        return place if self.revision else None

    @property
    def gguf(self) -> str | None:
        """The name of its .gguf file, where it is one."""
        file = self.arguments.get("gguf_file")
        return None if file is None else str(file)


def resolve(name: str, trust_remote_code: bool = False) -> Source:
    """What a model's name means; nothing is read but the default model's own files."""
    trust: Arguments = {"trust_remote_code": trust_remote_code}
    if name == default_model.NAME:
        made = str(default_model.prepare())
        return Source(
            {"pretrained_model_name_or_path": made, "local_files_only": True},
            default_model.DESCRIPTION,
            default_model.REVISION,
        )
    path = config.user_path(name, "`model`")
    try:
        return _local(name, path, trust) or _on_hub(name, path, trust)
    except OSError as error:
        raise UsageError(
            f"`model` {name[:100]} cannot be looked up ({error.strerror})", "give another path"
        ) from None


def called(name: str) -> str:
    """How outputs name a model; nothing is read."""
    if name == default_model.NAME:
        return default_model.DESCRIPTION
    return resolve(name).name


def _local(name: str, path: Path, trust: Arguments) -> Source | None:
    """The file or folder of this name; None where there is none."""
    local: Arguments = {
        "pretrained_model_name_or_path": str(path),
        "local_files_only": True,
        **trust,
    }
    if path.is_file() and path.suffix.lower() == ".gguf":
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        return Source({**local, **where}, f"{path.stem} (GGUF, dequantised)", str(path.resolve()))
    if path.is_dir() and (path / "config.json").is_file():
        return Source(local, path.resolve().name, str(path.resolve()))
    if path.exists():
        raise UsageError(
            f"`model` {name} is neither a .gguf file nor a folder with a config.json and weights"
        )
    return None


def _on_hub(name: str, path: Path, trust: Arguments) -> Source:
    _refuse_unless_hub_id(name, path)
    hub_id: Arguments = {
        "pretrained_model_name_or_path": name,
        "local_files_only": True,  # what is not in the cache is brought there first, see downloads
        **trust,
    }
    return Source(hub_id, name, "")


def _refuse_unless_hub_id(name: str, path: Path) -> None:
    is_hub_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) and path.suffix.lower() != ".gguf"
    if not is_hub_id:
        raise UsageError(
            f"`model` {name} does not exist",
            f"give {default_model.NAME}, a hub id such as "
            "owner/name, a local folder, or a .gguf file",
        )


def tokenizer_file(name: str) -> Path | None:
    """The tokenizer.json of a model's name where it is already on this machine, else None. Raises
    UsageError for a name that is no model's."""
    file: Path | None
    path = config.user_path(name, "`model`")
    if name == default_model.NAME:
        file = default_model.folder() / "tokenizer.json"
    elif os.path.exists(path):  # noqa: PTH110 (no error, ever)
        file = path / "tokenizer.json"
    else:
        _refuse_unless_hub_id(name, path)
        file = _in_hub_cache(name, "tokenizer.json")
    return file if file is not None and os.path.isfile(file) else None  # noqa: PTH113


def _in_hub_cache(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError:  # not a hub id at all; loading it will say so
        return None
    return Path(cached) if isinstance(cached, str) else None
