"""From what is typed to the flags of one mode, before anything else is done; and the help."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from config import UsageError
from visualization.terminal import config_check, flags
from visualization.terminal.config_check import shortened
from visualization.terminal.flags import BY_NAME, FLAGS, Flag, Given
from visualization.terminal.modes import MODES
from visualization.terminal.rules import SWITCH
from visualization.terminal.streams import tell

SEE = "`python main.py --help` shows all flags"
ABOUT = (
    "Extract the KV cache of a language model on real text, analyse and draw it,\n"
    "compress it, and measure what that costs."
)
COMPLETION = (
    "At the tab key bash and zsh offer modes, flags and values after `pip install argcomplete`\n"
    "and `activate-global-python-argcomplete`, once, and in a new shell."
)
MORE = "`--mode MODE --help` shows the flags of one mode, its defaults and examples."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message, SEE)


def parse(arguments: Sequence[str] | None = None) -> Given:
    """The mode, and every flag that it takes: as typed, or its default. Raises UsageError for what
    cannot work, here or in config.py, and SystemExit where help was asked for and shown."""
    config_check.check()
    typed = vars(parser_of(FLAGS).parse_args(arguments))
    mode = _mode(typed.pop("mode", []))
    if typed.pop("help", False):
        tell(_help(mode).rstrip())
        raise SystemExit(0)
    mode = mode or "analyze"
    for name in typed:
        _refuse_ignored(BY_NAME[name], mode)
    given = {name: _value(BY_NAME[name], text) for name, text in typed.items()}
    taken = [flag for flag in FLAGS if mode in flag.modes]
    everything = {flag.name: given.get(flag.name, flag.default_now()) for flag in taken}
    for name in given:
        _refuse_without_effect(BY_NAME[name], mode, given, everything)
    if "context_tokens" in everything:
        everything["context_tokens"] = given.get("context_tokens", given.get("sequence_length"))
    if everything.get("load_cache") is not None:  # the default model need not be that of the cache
        everything["model"] = given.get("model")
    return {"mode": mode, **everything}


def _mode(named: list[str]) -> str:
    """The one that was named, empty for none; several are refused, for which is meant?"""
    for name in named:
        if name not in MODES:
            raise UsageError(f"--mode is {shortened(name)}", f"it takes one of {', '.join(MODES)}")
    if len(set(named)) > 1:
        raise UsageError(f"--mode was given as {' and '.join(named)}", "keep one")
    return named[0] if named else ""


def _value(flag: Flag, typed: Any) -> Any:
    """What was typed as the value that it stands for."""
    if flag.rule is SWITCH:
        return typed
    try:
        value = flag.rule.read(typed)
    except (ValueError, OverflowError):
        value = None
    if value is None or not flag.rule.holds(value):
        shown = typed if typed.isprintable() and len(typed) < 40 else shortened(typed)
        raise UsageError(f"`{flag.name}` is {shown or 'empty'}", f"it takes {flag.rule.words}")
    return value


def _refuse_ignored(flag: Flag, mode: str) -> None:
    if mode in flag.modes:
        return
    takers = f"--mode {flag.modes[0]} does"
    if len(flag.modes) > 1:
        takers = f"{', '.join(flag.modes[:-1])} and {flag.modes[-1]} do"
    raise UsageError(f"`{flag.name}` was given, and --mode {mode} does not take it", takers)


def _refuse_without_effect(flag: Flag, mode: str, given: Given, everything: Given) -> None:
    for other in flag.not_beside:
        with_model = other == "load_cache" and flag.name in flags.OF_ITS_COST.get(mode, ())
        if other in given and not (with_model and "model" in given):
            without = "without the `model` of the cache " if with_model else ""
            raise UsageError(
                f"`{other}` and `{flag.name}` were both given",
                f"beside `{other}` there is {without}no use for `{flag.name}`; "
                f"{'give that as well' if with_model else 'keep one'}",
            )
    if mode not in flag.only_with:
        return
    needed, values = flag.only_with[mode]
    if everything[needed] is None or (values and everything[needed] not in values):
        needs = _condition(needed, values)
        raise UsageError(
            f"`{flag.name}` was given, which --mode {mode} takes only with {needs}",
            f"give that as well, or leave `{flag.name}` out",
        )


def _wrapped(text: str, indent: int) -> str:
    """Lines of a terminal of the usual width, the later ones indented under the first."""
    margin = "  " if indent else ""
    return textwrap.fill(
        text,
        80,
        initial_indent=margin,
        subsequent_indent=margin + indent * " ",
        break_on_hyphens=False,
    )


def parser_of(declared: Iterable[Flag], mode: str = "") -> _Parser:
    """With the given flags only; what is not typed is not there afterwards."""
    p = _Parser(
        prog="main.py", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    groups: dict[str, Any] = {}
    what = p.add_argument_group("what to do")
    groups["what to do"] = what
    what.add_argument("-h", "--help", action="store_true", help="show this, of one mode or of all")
    if not mode:
        text = "one of those above (default: analyze)"
        what.add_argument("--mode", action="append", metavar="MODE", help=text)
    for flag in declared:
        if flag.group not in groups:
            groups[flag.group] = p.add_argument_group(flag.group)
        groups[flag.group].add_argument(f"--{flag.name}", **_options(flag, mode))
    return p


def _options(flag: Flag, mode: str) -> dict[str, Any]:
    text = flag.text
    if not mode and len(flag.modes) < len(MODES):
        text += f" [{_listed(flag.modes)}]"
    if mode in flag.more:
        text += f"; {flag.more[mode]}"
    if mode in flag.only_with:
        text += f"; only with {_condition(*flag.only_with[mode])}"
    default = flag.usually(mode)
    if default is not None and default is not False:
        text += f" (default: {_shown(default)})"
    text = flags.as_flags(text).replace("%", "%%")
    if flag.rule is not SWITCH:
        return {"metavar": flag.rule.shown, "help": text}
    either = flag.default is not False  # what config.py may switch on can be switched off
    return {"action": argparse.BooleanOptionalAction if either else "store_true", "help": text}


def _listed(modes: Sequence[str]) -> str:
    """Of many those that are not among them."""
    if 2 * len(modes) <= len(MODES) + 2:
        return ", ".join(modes)
    return f"all but {', '.join(mode for mode in MODES if mode not in modes)}"


def _condition(needed: str, values: tuple[object, ...]) -> str:
    which = "" if values in ((), (True,)) else f" {' or '.join(map(str, values))}"
    return f"`{needed}`{which}"


def _shown(default: object) -> str:
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return "on" if default is True else str(default)


def _help(mode: str) -> str:
    """Of one mode: what it does, its flags with their defaults, and examples. Without a mode, of
    all, with the modes that take each flag."""
    p = parser_of([flag for flag in FLAGS if not mode or mode in flag.modes], mode)
    p.usage = f"python main.py --mode {mode or 'MODE'} [flags]"
    if not mode:
        width = max(map(len, MODES))
        lines = [
            _wrapped(f"{name:{width}}  {mode.does}", width + 2) for name, mode in MODES.items()
        ]
        p.description = "\n".join([ABOUT, "\nmodes:", *lines, f"\n{MORE}"])
        examples = [each.examples[0] for each in MODES.values()]
    else:
        also = (
            "The same as compression/run_tucker_analysis.py [flags]\n\n" if mode == "tucker" else ""
        )
        p.description = also + _wrapped(f"--mode {mode} {MODES[mode].does}.", 0)
        examples = list(MODES[mode].examples)
    shown = "\n".join(f"  python main.py {example}" for example in examples)
    ends = ["Defaults are edited in config.py.", *([] if mode else [COMPLETION])]
    p.epilog = "\n".join([f"examples:\n{shown}\n", *ends])
    return p.format_help()
