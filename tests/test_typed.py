"""From the settings of a run back to its command."""

import json
import shlex

import pytest

from visualization.terminal import command_line
from visualization.terminal.typed import as_typed


@pytest.mark.parametrize(
    "typed",
    [
        "--mode analyze",
        "--mode analyze --analysis_focus heads --text_file 'a b.md' --sequence_length 512",
        "--mode analyze --measure --no-use_wikitext --wikitext_index 3 --score_tokens 9",
        "--mode prune --prune_heads 4:0,2 --prune_layers 0,1",
        "--mode compare --methods kivi,snapkv --levels 0.5,0.25 --max_kl 0.01",
        "--mode tucker --energy 0.95 --unrotated_keys --no_sensitivity --context_tokens 64",
        """--mode analyze_generation --prompt 'It'"'"'s $HOME; rm' --new_tokens 64""",
        "--mode compare --models a,b --quick",
    ],
)
def test_the_command_of_a_run_repeats_it(typed):
    given = command_line.parse(shlex.split(typed))
    told = json.loads(json.dumps(given))  # as a manifest keeps it
    again = shlex.split(as_typed(told["mode"], told))
    assert again[:2] == ["python", "main.py"] and command_line.parse(again[2:]) == given
