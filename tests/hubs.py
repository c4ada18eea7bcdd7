"""Hubs on this machine that behave well, badly, or not at all."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = Callable[[BaseHTTPRequestHandler], None]


def drips(call: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever."""
    call.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while True:
        call.wfile.write(b"x")
        call.wfile.flush()
        time.sleep(0.05)


def fails(call: BaseHTTPRequestHandler) -> None:
    call.send_error(500)


def garbage(call: BaseHTTPRequestHandler) -> None:
    _send(call, b"<html>Sign in to the hotel's network</html>")


def goes_round(call: BaseHTTPRequestHandler) -> None:
    call.send_response(302)
    call.send_header("Location", call.path)
    call.send_header("Content-Length", "0")
    call.end_headers()


def silent(call: BaseHTTPRequestHandler) -> None:
    time.sleep(60)


def _send(call: BaseHTTPRequestHandler, body: bytes, **headers: str) -> None:
    call.send_response(200)
    for name, value in headers.items():
        call.send_header(name.replace("_", "-"), value)
    call.send_header("Content-Length", str(len(body)))
    call.end_headers()
    if call.command == "GET":
        call.wfile.write(body)


def holding(folder: Path, others: Answer = fails, bad: tuple[str, ...] = ()) -> Answer:
    """A hub with one model, owner/name; files that are `bad` are answered as `others` says."""

    def answer(call: BaseHTTPRequestHandler) -> None:
        path = call.path.split("?")[0]
        file = path.removeprefix("/owner/name/resolve/main/")
        if path.startswith("/api/models/owner/name"):
            names = [{"rfilename": each.name} for each in sorted(folder.iterdir())]
            facts = {"id": "owner/name", "sha": COMMIT, "siblings": names}
            _send(call, json.dumps(facts).encode(), Content_Type="application/json")
        elif file in bad and call.command == "GET":
            others(call)
        elif (folder / file).is_file():
            tag = {"ETag": f'"{file.replace(".", "-")}"', "X_Repo_Commit": COMMIT}
            _send(call, (folder / file).read_bytes(), **tag)
        elif path == "/":
            _send(call, b"")
        else:
            call.send_error(404)

    return answer


@contextmanager
def running(answer: Answer, patch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    """While entered, this hub is the one that is asked, with an empty local cache."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # of a caller that has given up
                answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.setenv("HF_ENDPOINT", url)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.ENDPOINT", url)
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch.setattr("huggingface_hub.constants.AGENT_HARNESSES_PATH", str(cache / "agents.json"))
    patch.setattr("huggingface_hub.utils._detect_agent._registry", None)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    hub.reachable.cache_clear()
    try:
        yield
    finally:
        hub.reachable.cache_clear()
        server.shutdown()
        server.server_close()
