"""What each mode of the command line does, in a sentence, and commands to try."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """does: in a sentence. examples: arguments after `python main.py`."""

    does: str
    examples: tuple[str, ...]


MODES = {
    "analyze": Mode(
        "shows how the cache of one text looks: by layer, KV head, token and embedding dimension, "
        "and as text is generated",
        (
            "--mode analyze",
            "--mode analyze --analysis_focus heads --text_file README.md --sequence_length 512",
            "--mode analyze --measure --no-use_wikitext --wikitext_index 3",
            "--mode analyze --analysis_focus cache --layer 20 --head 1",
            "--mode analyze --analysis_focus spectrum",
        ),
    ),
    "analyze_generation": Mode(
        "shows how sparsity evolves while text is generated, after the whole text",
        (
            "--mode analyze_generation --new_tokens 64",
            '--mode analyze_generation --prompt "Once upon a time"',
        ),
    ),
    "analyze_similarity": Mode(
        "shows which layers, KV heads, tokens and dimensions are alike, and what merging costs",
        (
            "--mode analyze_similarity",
            "--mode analyze_similarity --context_tokens 512 --num_samples 2",
        ),
    ),
    "tucker": Mode(
        "decomposes keys and values of each layer along tokens and dimensions, and measures what "
        "that costs",
        (
            "--mode tucker --sequence_length 512 --token_rank 32 --embedding_rank 32",
            "--mode tucker --context_tokens 512 --energy 0.95 --unrotated_keys --no_sensitivity",
            "--mode tucker --context_tokens 512 --target_ratio 3 --num_samples 2",
        ),
    ),
    "compress": Mode(
        "keeps fewer embedding dimensions, in five ways, and measures what that costs",
        (
            "--mode compress",
            "--mode compress --context_tokens 512 --levels 0.75,0.5 --unrotated_keys",
        ),
    ),
    "prune": Mode(
        "leaves out layers, KV heads, dimensions, entries or tokens, those that are named or else "
        "those that heuristics recommend, beside random choices of the same size",
        (
            "--mode prune",
            "--mode prune --prune_layers 0,1,2",
            "--mode prune --prune_method token --keep_tokens 0.5 --token_score snapkv",
        ),
    ),
    "compare": Mode(
        "measures every way to make the cache smaller at the bytes it really stores, and names "
        "what fits a budget",
        (
            "--mode compare --quick",
            "--mode compare --methods coded,kivi --max_kl 0.01 --memory_gib 24",
            "--mode compare --quick --tasks",
            "--mode compare --methods kivi,snapkv --levels 0.5,0.25 --show_generation 40",
            "--mode compare --load_cache readme.cache --model smollm2-135m",
        ),
    ),
    "tasks": Mode(
        "sets tasks made by rule (needles, chains, word counts, instructions) to the model on a "
        "compressed cache, several questions on each, and looks at how it goes on",
        (
            "--mode tasks",
            "--mode tasks --context_tokens 4096 --num_samples 8 --methods coded,kvtc,kivi",
            "--mode tasks --quick",
        ),
    ),
    "calibrate": Mode(
        "learns once for a model what the method `coded` needs; other modes do so by themselves",
        ("--mode calibrate", "--mode calibrate --model ./my-model --dtype bfloat16"),
    ),
    "store": Mode(
        "keeps the cache of a prompt in a file, compressed or plain, and generates from a "
        "compressed one, after a question of it, or turn by turn",
        (
            "--mode store --text_file README.md --context_tokens 512 --save_compressed readme.kv",
            "--mode store --wikitext_index 3 --methods kivi-4 --save_compressed sample.kv",
            "--mode store --load_compressed readme.kv --new_tokens 40",
            "--mode store --load_compressed readme.kv --prompt 'What is it for?'",
            "--mode store --load_compressed chat.kv --prompt 'Why?' --save_compressed chat.kv",
            "--mode store --text_file README.md --save_cache readme.cache",
        ),
    ),
    "report": Mode(
        "makes `report.html` anew, the page of what a folder of results holds, or of two side by "
        "side; needs no model",
        (
            "--mode report",
            "--mode report --output_dir graphs --compare_with earlier",
        ),
    ),
    "list_samples": Mode(
        "lists the texts of the corpus, for --wikitext_index",
        ("--mode list_samples", "--mode list_samples --no-use_wikitext"),
    ),
}
