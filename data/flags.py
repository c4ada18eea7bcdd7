"""The flags of the command line: the fields of RunConfig."""

import argparse
from collections.abc import Iterable
from dataclasses import fields

from config import RunConfig, UsageError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}. `python main.py --help` shows all flags.")


def parser(modes: Iterable[str]) -> argparse.ArgumentParser:
    """All flags: the fields of RunConfig, with their groups, texts and defaults."""
    p = _Parser(
        prog="main.py",
        description="Extract the KV cache of a language model on real text, analyse and draw it, "
        "compress it, and measure what that costs.",
        epilog="Defaults are edited in config.py.",
        allow_abbrev=False,
    )
    groups = {f.metadata["group"]: None for f in fields(RunConfig)}
    groups = {name: p.add_argument_group(name) for name in groups}
    defaults = RunConfig()
    for flag in fields(RunConfig):
        options = dict(flag.metadata)
        group, default = groups[options.pop("group")], getattr(defaults, flag.name)
        if flag.name == "mode":
            options["choices"] = list(modes)
        if isinstance(default, int | float) and not isinstance(default, bool):
            options.setdefault("type", type(default))
        if default not in (None, False):
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            options["help"] += f" (default: {shown})".replace("%", "%%")
        group.add_argument(f"--{flag.name}", default=default, **options)
    return p
