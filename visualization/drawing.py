"""Pictures that are drawn in processes of their own, while the model works.

Bringing in matplotlib and drawing takes about as long as the model does. A worker does the first
while the main process brings in torch and transformers, and the second while it generates. It is a
plain child process, spoken to through pipes: nothing is forked, so threads of torch cannot be
caught half way, and nothing of the caller's main module is run again.
"""

import gc
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING

import config
from config import UsageError
from visualization.catalogue import MODULES, PICTURES

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
ENDS_S = 10.0  # for a worker that has closed its pipe
BEHIND = 10  # steps of priority that a worker stands back, so that the model goes first
ALIVE_S = 0.1  # how often waiting looks up, since on Windows only then Ctrl-C is heard


class Drawing:
    """A context for one run: pictures that are not drawn when it ends are given up.

    Without workers each picture is drawn in this process, when it is submitted. Otherwise the
    workers start as soon as the context is entered; enter it first of all, and inside that of the
    folder that is drawn into, so that nothing is drawn into it any more when it is cleaned up.
    """

    def __init__(self, workers: int = 0) -> None:
        self._n_workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._tasks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._errors: list[Exception] = []

    def __enter__(self) -> "Drawing":
        try:
            for _ in range(self._n_workers):
                self._processes.append(_worker())
        except BaseException:
            self._end()
            raise
        for process in self._processes:
            thread = threading.Thread(target=self._feed, args=(process,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def submit(self, stem: str, table: "pd.DataFrame", about: str, path: str | Path) -> None:
        """Draw the picture `stem` of a table, which may change afterwards, into a file, in the
        format that its ending says.

        It is drawn under the constants of config.py as they are now. Raises what went wrong with
        an earlier picture, if that is known already.
        """
        if not self._n_workers:
            _draw(stem, table, about, path)
            return
        self._raise()
        task = (stem, table, about, str(Path(path).absolute()), _constants())
        self._tasks.put(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))

    def finish(self) -> None:
        """Wait until all pictures are drawn; raises what went wrong with the first that is not."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(ALIVE_S)
        self._raise()

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Give a worker one task after the other; after an error there is no point in more."""
        tasks, answers = _pipes(process)
        for task in iter(self._tasks.get, None):
            if self._errors:
                continue
            try:
                tasks.write(task)
                tasks.flush()
                error = pickle.load(answers)
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                error = _died(process)
            except Exception as unreadable:  # here nobody sees it: it is raised where one waits
                error = unreadable
            if error is not None:
                self._errors.append(error)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _end(self) -> None:
        """Leave no process behind; what has been drawn is in its file, so that none needs time."""
        for process in self._processes:
            process.kill()
            process.wait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for tasks, answers in map(_pipes, self._processes):
            with suppress(OSError):  # of what it had not read yet
                tasks.close()
            answers.close()
        self._processes, self._threads = [], []


def _worker() -> subprocess.Popen[bytes]:
    """A process that finds the same modules, and that no Ctrl-C reaches: its end is ours to say."""
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        return subprocess.Popen(
            [sys.executable, "-c", "from visualization import drawing; drawing.serve()"],
            cwd=ROOT,  # where a command line of code finds the toolkit's own packages
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=sys.platform != "win32",
            creationflags=flags,
        )
    except OSError as error:
        raise UsageError(
            f"The process that draws the pictures cannot be started ({error.strerror or error})",
            "close other programs",
        ) from None


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """What a worker is told through, and what it answers through."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("a worker is started with two pipes")
    return process.stdin, process.stdout


def _constants() -> dict[str, object]:
    """config.py as it stands here: a worker has read the file, which may say otherwise."""
    return {name: value for name, value in vars(config).items() if name.isupper()}


def _draw(stem: str, table: "pd.DataFrame", about: str, path: str | Path) -> None:
    from visualization.picture_files import save

    save(PICTURES[stem](table, about), path)


def _died(process: subprocess.Popen[bytes]) -> UsageError:
    try:
        code = process.wait(ENDS_S)
    except subprocess.TimeoutExpired:  # it says nothing more, and is no use
        process.kill()
        code = process.wait()
    return UsageError(
        f"The process that draws the pictures has ended (code {code}), as one does that the system "
        "takes memory from",
        "close other programs, or read fewer tokens with `sequence_length`",
    )


def serve() -> None:
    """A worker's life: bring in what draws, then draw what is asked for until nobody asks."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a print must not end up among the answers
    if hasattr(os, "nice"):
        os.nice(BEHIND)
    gc.disable()  # imports leave no garbage, and to look for it takes a fifth of their time
    for module in sorted(set(MODULES.values())):
        import_module(f"visualization.{module}")
    gc.freeze()
    gc.enable()
    while True:
        try:
            *picture, constants = pickle.load(tasks)
        except (EOFError, pickle.UnpicklingError):  # the run has ended, in the middle of one
            return
        vars(config).update(constants)
        try:
            answers.write(pickle.dumps(_attempt(*picture)))
        except BrokenPipeError:  # it has ended meanwhile
            return


def _attempt(stem: str, table: "pd.DataFrame", about: str, path: str) -> Exception | None:
    """What went wrong with a picture, as it was, with a note of where."""
    try:
        _draw(stem, table, about, path)
    except Exception as error:
        where = traceback.format_exc()
        try:
            error.add_note(f"In the process that draws {stem}:\n{where}")
            pickle.loads(pickle.dumps(error))
        except Exception:  # some exceptions cannot be sent
            return RuntimeError(where)
        return error
    return None
