"""An OpenAI-compatible server on localhost that misbehaves as a test says."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[str, int], Any]


class Server(ThreadingHTTPServer):
    """Answers chats and texts to speak; `script(text, number)` is the reply to the n-th request for a text.

    A reply is JSON or bytes, (status, JSON or bytes, headers), or a function of the handler. Where no header says when
    to come back, it is in 1 ms.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        self.at_once, self.most_at_once = 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what these tests are about."""


Serve = Callable[[Script], Server]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, server = body["input"] if "input" in body else body["messages"][-1]["content"], self.server
        with server.lock:
            server.asked[text] += 1
            server.bodies.append(body)
            server.paths.append(self.path)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            number = server.asked[text]
        try:
            reply = server.script(text, number)
        finally:
            with server.lock:  # before the reply: who has it may be back at once
                server.at_once -= 1
        if callable(reply):
            reply(self)
            return
        status, said, headers = reply if isinstance(reply, tuple) else (200, reply, {})
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        pause = {} if "Retry-After" in headers else {"Retry-After-Ms": "1"}
        for name, value in {**pause, **headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serving() -> Iterator[Serve]:
    """Starts servers, which end with the block."""
    servers: list[Server] = []

    def start(script: Script) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


def hangs(handler: Handler) -> None:
    handler.server.over.wait()


def drops(handler: Handler) -> None:
    handler.connection.close()


def drips(handler: Handler) -> None:
    """A byte now and then, so that no single read ever times out."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def floods(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    start = time.monotonic()
    while time.monotonic() < start + 30:
        handler.wfile.write(b" " * (1 << 20))


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": ')
