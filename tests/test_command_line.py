"""What is typed on the command line: taken, refused in a sentence, or told of in the help."""

import inspect
import shlex

import pytest

import config
import main
from compression.prompts import refuse, save
from compression.studies import from_cache, presets
from compression.studies.analyze import Analysis
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.places import place
from compression.studies.prune import PruneStudy
from compression.studies.similarity import SimilarityStudy
from compression.studies.task_study import TaskStudy
from compression.studies.tucker import TuckerStudy
from compression.turns import go_on
from config import UsageError
from data import chosen_texts, models
from visualization.report import remade
from visualization.terminal import command_line, config_check, flags, listing
from visualization.terminal.modes import MODES
from visualization.terminal.rules import SWITCH


def parse(*typed: str) -> dict:
    return command_line.parse([*typed])


@pytest.mark.parametrize("mode", MODES)
def test_a_flag_that_is_not_given_is_as_config_says_now(monkeypatch, mode):
    taken = [flag for flag in flags.FLAGS if mode in flag.modes]
    given = parse("--mode", mode)
    assert given == {"mode": mode, **{flag.name: flag.default_now() for flag in taken}}
    constants = [f for f in taken if str(f.default).isupper()]
    for flag in constants:
        monkeypatch.setattr(config, flag.default, "of this test")
    monkeypatch.setattr(config_check, "check", lambda: None)
    given = parse("--mode", mode)
    assert constants and all(given[flag.name] == "of this test" for flag in constants)


def test_a_run_without_a_mode_analyses():
    assert parse() == parse("--mode", "analyze")


def test_what_the_help_calls_the_default_is_what_a_study_takes():
    studies = {
        "analyze_similarity": SimilarityStudy(),
        "tucker": TuckerStudy(),
        "compress": CompressStudy(),
        "prune": PruneStudy(),
        "compare": CompareStudy(),
        "tasks": TaskStudy(),
    }
    for mode, study in studies.items():
        assert flags.BY_NAME["sequence_length"].usually(mode) == study.context
        assert flags.BY_NAME["score_tokens"].usually(mode) == study.n_scored
        assert flags.BY_NAME["num_samples"].usually(mode) == study.n_texts
    assert flags.BY_NAME["sequence_length"].usually("analyze") == Analysis().n_read
    scores = [choice.method.name for choice in PruneStudy(prune_method="token").asked(None)]
    assert list(flags.BY_NAME["token_score"].usually("prune")) == scores


TAKERS = {
    "analyze": [Analysis],
    "analyze_generation": [Analysis],
    "analyze_similarity": [SimilarityStudy],
    "tucker": [TuckerStudy],
    "compress": [CompressStudy],
    "prune": [PruneStudy],
    "compare": [CompareStudy],
    "tasks": [TaskStudy],
    "calibrate": [],
    "store": [refuse, save, go_on],
    "report": [remade.remake],
    "list_samples": [listing.listing],
}
LIGHT = ("report", "list_samples")


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_takes_the_arguments_of_what_it_calls_and_no_others(mode):
    taken = {flag.name for flag in flags.FLAGS if mode in flag.modes}
    called = list(TAKERS[mode])
    called += [models.load] if mode not in LIGHT else []
    called += [place] if mode in flags.DRAW else []
    called += (
        [chosen_texts.candidates] if mode not in ("report", "list_samples", "calibrate") else []
    )
    called += [from_cache.run, from_cache.ASKED[mode]] if mode in from_cache.ASKED else []
    arguments = {name for each in called for name in inspect.signature(each).parameters}
    # Of the library alone
    arguments -= {"loaded", "sample", "needles", "asked", "phase", "load", "candidates"}
    if mode == "analyze_generation":
        arguments -= {"analysis_focus", "measure", "score_tokens", "save_cache", "layer", "head"}
    # main.py reads these
    own = {"debug", "quiet", "json", "sequence_length", "output_dir", "format", "continuation"}
    own |= {"models"}
    assert arguments <= taken and taken <= arguments | own


def test_modes_are_told_of_as_they_are_dispatched():
    assert list(main.MODES) == list(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_flags_that_a_mode_ignores_are_refused_with_those_that_take_it(mode):
    ignored = [flag for flag in flags.FLAGS if mode not in flag.modes]
    assert ignored or mode in ("analyze", "compare")
    for flag in ignored:
        value = [] if flag.rule is SWITCH else ["nonsense"]
        with pytest.raises(UsageError) as refusal:
            parse("--mode", mode, f"--{flag.name}", *value)
        said = str(refusal.value)
        assert f"`{flag.name}` was given, and --mode {mode} does not take it: " in said
        assert all(taker in said for taker in flag.modes)


@pytest.mark.parametrize(
    ("flag", "other"), [(flag, other) for flag in flags.FLAGS for other in flag.not_beside]
)
def test_flags_that_leave_no_use_for_each_other_are_refused(flag, other):
    both = [mode for mode in flag.modes if mode in flags.BY_NAME[other].modes]
    mode = both[both[0] == "analyze" and len(both) > 1]  # where most flags need others as well
    typed = {name: typed_value(flags.BY_NAME[name]) for name in (flag.name, other)}
    with pytest.raises(UsageError, match=f"`{other}` and `{flag.name}` were both given"):
        parse("--mode", mode, *(word for name in typed for word in (f"--{name}", *typed[name])))


def typed_value(flag: flags.Flag) -> list[str]:
    """A value that a flag takes."""
    if flag.rule is SWITCH:
        return []
    if flag.rule.shown.startswith("{"):
        return [flag.rule.shown[1:-1].split(",")[0]]
    return ["1"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("analyze --score_tokens 5", "`score_tokens` was given, which --mode analyze takes only "
         "with `measure`: give that as well, or leave `score_tokens` out."),
        ("analyze --continuation x", "only with `measure`"),
        ("analyze --analysis_focus heads --new_tokens 5", "only with `analysis_focus` all or tok"),
        ("prune --levels 0.5", "only with `prune_method` dimension"),
        ("prune --levels 0.5 --prune_method token", "only with `prune_method` dimension"),
        ("store --save_compressed a --new_tokens 5", "only with `load_compressed`"),
        ("compare --load_cache a --max_kl 5", "beside `load_cache` there is without the `model` of "
         "the cache no use for `max_kl`; give that as well."),
        ("compare --load_cache a --model b --tasks", "no use for `tasks`; keep one"),
        ("prune --load_cache a --model b --score_tokens 5", "no use for `score_tokens`; keep one"),
    ],
)  # fmt: skip
def test_flags_that_need_another_are_refused_without_it(typed, says):
    with pytest.raises(UsageError) as refusal:
        parse("--mode", *typed.split())
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "typed",
    [
        "analyze --measure --score_tokens 5",
        "analyze --measure --continuation x",
        "analyze --analysis_focus tokens --new_tokens 5",
        "prune --levels 0.5 --prune_method dimension",
        "store --load_compressed a --new_tokens 5",
        "compare --quick --score_tokens 5",
        "compare --load_cache a --model b --score_tokens 5",
        "compare --load_cache a --model b --text_file a",
        "compare --load_cache a --model b --device_map auto",
    ],
)
def test_with_it_they_are_taken(typed):
    words = typed.split()
    assert str(parse("--mode", *words)[words[-2].removeprefix("--")]).strip("(),") in (
        words[-1],
        "0.5",
        "True",
        "dimension",
    )


def test_a_function_is_handed_the_flags_of_its_arguments():
    given = parse("--mode", "prune", "--prune_heads", "4:0,2", "--prompt", "a")
    handed = flags.arguments_of(PruneStudy, given)
    assert handed["prune_heads"] == ((4, 0), (None, 2))
    assert (
        "prompt" not in handed
        and flags.arguments_of(chosen_texts.candidates, given)["prompt"] == "a"
    )
    given = parse("--mode", "compare", "--levels", "0.5,1")
    assert flags.arguments_of(CompareStudy, given)["levels"] == (0.5, 1.0)
    assert "needles" not in flags.arguments_of(CompareStudy, given)


def test_both_names_of_a_length_are_the_same():
    given = parse("--sequence_length", "9")
    assert given["context_tokens"] == given["sequence_length"] == 9
    assert parse("--context_tokens", "9")["context_tokens"] == 9


@pytest.mark.parametrize("mode", [*MODES, ""])
def test_help_shows_the_flags_of_a_mode_with_defaults_units_and_examples(mode, capsys):
    named = ["--mode", mode] if mode else []
    with pytest.raises(SystemExit) as ended:
        main.main([*named, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    words = set(shown.replace(",", " ").split())
    for flag in flags.FLAGS:
        assert (f"--{flag.name}" in words) == (not mode or mode in flag.modes), flag.name
    assert shown.count("python main.py --mode") >= 2
    assert max(map(len, shown.splitlines())) <= 120
    if mode == "tucker":
        assert "(default: 2048)" in shown and "compression/run_tucker_analysis.py" in shown
    if mode in ("compare", "store"):
        assert all(family in shown for family in presets.families())


@pytest.mark.parametrize(
    "example", [example for mode in MODES.values() for example in mode.examples]
)
def test_the_examples_of_the_help_can_be_typed(example):
    given = parse(*shlex.split(example))
    for taker in TAKERS[given["mode"]]:
        if taker not in (refuse, save, go_on, remade.remake):  # which look for files
            assert taker(**flags.arguments_of(taker, given))


def test_arguments_are_shown_as_the_flags_that_they_came_from():
    said = flags.as_flags("`prompt` and `text_file`; `--mode store`, `keep` and `a b` are no flags")
    assert said == "--prompt and --text_file; `--mode store`, `keep` and `a b` are no flags"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sequence_length", "0"], "`sequence_length` is 0: it takes 1 or more tokens"),
        (["--sequence_length", "-5"], "`sequence_length` is -5"),
        (["--sequence_length", str(10**400)], "it takes 1 or more tokens (a billion at most)"),
        (["--sequence_length", "9" * 5000], "`sequence_length` is '999"),
        (["--context_tokens", "0"], "`context_tokens` is 0"),
        (["--measure", "--score_tokens", "0"], "`score_tokens` is 0"),
        (["--new_tokens", "0"], "`new_tokens` is 0"),
        (["--new_tokens", "many"], "`new_tokens` is many: it takes 1 or more tokens"),
        (["--new_tokens", "1.5"], "`new_tokens` is 1.5: it takes 1 or more tokens"),
        (["--wikitext_index", "-1"], "`wikitext_index` is -1"),
        (["--mode", "prune", "--keep_tokens", "0"], "`keep_tokens` is 0: it takes a share above 0"),
        (["--mode", "compress", "--levels", "1.5"], "`levels` is 1.5: it takes shares above 0"),
        (["--mode", "compress", "--levels", "0.5,zero"], "`levels` is 0.5,zero: it takes shares"),
        (["--mode", "prune", "--prune_layers", "a"], "`prune_layers` is a: it takes layers such"),
        (["--mode", "prune", "--prune_layers", "-1"], "`prune_layers` is -1: it takes layers such"),
        (
            ["--mode", "prune", "--prune_heads", "1:2:3"],
            "`prune_heads` is 1:2:3: it takes KV heads",
        ),
        (["--mode", "compare", "--max_bits", "-1"], "`max_bits` is -1: it takes a number above 0"),
        (["--mode", "compare", "--max_kl", "nan"], "`max_kl` is nan"),
        (["--mode", "compare", "--memory_gib", "inf"], "`memory_gib` is inf"),
        (["--mode", "compare", "--show_generation", "-1"], "`show_generation` is -1"),
        (["--mode", "compare", "--methods", "coded,"], "`methods` is coded,: it takes names"),
        (["--mode", "tucker", "--target_ratio", "0.5"], "`target_ratio` is 0.5: it takes a ratio"),
        (["--output_dir", " "], "`output_dir` is  : it takes a folder"),
        (["--output_dir", "a\0b"], "`output_dir` is 'a\\x00b': it takes a folder, in UTF-8 and"),
        (["--output_dir", "a\udcffb"], "`output_dir` is 'a\\udcffb': it takes a folder"),
        (["--text_file", "a\udcffb"], "`text_file` is 'a\\udcffb': it takes a file"),
        (["--model", "a\0b"], "`model` is 'a\\x00b': it takes a model's name"),
        (["--prompt", "a\udcffb"], "`prompt` is 'a\\udcffb': it takes some text in UTF-8"),
        (["--measure", "--continuation", "\udcff"], "`continuation` is '\\udcff': it takes some"),
        (["--mode", "store", "--save_compressed", "\udcff"], "`save_compressed` is '\\udcff'"),
        (["--mode", "store", "--load_compressed", "a\0"], "`load_compressed` is 'a\\x00'"),
        (
            ["--text_file", "~nobody-of-that-name/x"],
            "`text_file` is ~nobody-of-that-name/x: it tak",
        ),
        (
            ["--mode", "compress_all"],
            "--mode is 'compress_all': it takes one of analyze, analyze_g",
        ),
        (
            ["--analysis_focus", "neurons"],
            "`analysis_focus` is neurons: it takes one of all, layer",
        ),
        (["--device", "tpu"], "`device` is tpu: it takes one of auto, cpu, cuda, mps"),
        (["--mode", "prune", "--token_score", "loud"], "`token_score` is loud: it takes one of"),
        (["--seq", "5"], "unrecognized arguments"),
        (["tucker"], "unrecognized arguments: tucker: `python main.py --help` shows all flags"),
    ],
)
def test_flags_that_cannot_work_are_refused(arguments, says):
    with pytest.raises(UsageError) as refusal:
        parse(*arguments)
    assert says in str(refusal.value)
