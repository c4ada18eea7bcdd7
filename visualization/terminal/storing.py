"""`--mode store`: the cache of a prompt in a file, and going on from one."""

from typing import TYPE_CHECKING

from visualization.terminal import inputs
from visualization.terminal.flags import Given, arguments_of
from visualization.terminal.session import Session

if TYPE_CHECKING:
    from data.loaded_model import LoadedModel


def store(given: Given, session: Session) -> None:
    """Keep the cache of a prompt in a file, compressed or plain, or go on from one."""
    from compression import prompts
    from data import chosen_texts

    prompts.refuse(**arguments_of(prompts.refuse, given))
    loaded = inputs.model(given, session.phase)
    if given["load_compressed"] is not None:
        _go_on(given, session, loaded)
        return
    with session.phase("text"):
        asked = arguments_of(chosen_texts.candidates, given)
        sample = chosen_texts.only_first(chosen_texts.candidates(**asked))
    with session.phase("prefill"):
        said = prompts.save(loaded, sample, **arguments_of(prompts.save, given))
    kept = given["save_compressed"] or given["save_cache"]
    text = {name: getattr(sample, name) for name in ("source", "index", "title")}
    session.end("Stored", said, model=loaded.facts, text=text, files=[kept])


def _go_on(given: Given, session: Session, loaded: "LoadedModel") -> None:
    """What the model says after a stored prompt, and after a text that is given as well."""
    from compression import turns
    from data import chosen_texts

    added = None
    if given["prompt"] is not None or given["text_file"] is not None:
        own = chosen_texts.candidates(given["prompt"], given["text_file"])
        added = chosen_texts.only_first(own)
    with session.phase("generation"):
        asked = arguments_of(turns.go_on, given)
        continued, said = turns.go_on(loaded, sample=added, **asked)
    kept = {"files": [given["save_compressed"]]} if said else {}
    session.end_with_text("Generated after the prompt", continued, said, model=loaded.facts, **kept)
