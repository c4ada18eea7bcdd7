"""Prompts whose compressed cache is kept in a file, and gone on from."""

from tests import families


def test_a_stored_prompt_goes_on_as_the_prompt_itself_would(mode, tmp_path, capsys):
    file = tmp_path / "prompt.kv"
    text = ["--prompt", "The cache of a model holds keys and values. " * 3]
    assert mode("store", *text, "--save_compressed", str(file), "--methods", "none") == 0
    assert "1.00 x smaller" in capsys.readouterr().out
    assert mode("store", "--load_compressed", str(file), "--new_tokens", "8") == 0
    said = capsys.readouterr().out
    assert said.strip()
    file.write_bytes(file.read_bytes()[:-1])
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "cannot be read as a compressed cache" in capsys.readouterr().err


def test_a_stored_prompt_of_another_model_is_refused(mode, tmp_path, capsys):
    file = tmp_path / "prompt.kv"
    flags = ["--prompt", "abc", "--save_compressed", str(file), "--methods", "none"]
    assert mode("store", *flags) == 0
    families.save(families.model("gpt2"), tmp_path / "gpt2")
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file), "--model", str(tmp_path / "gpt2")) == 2
    assert "was made with tiny-llama" in capsys.readouterr().err
