"""A server of files on localhost, with ranges, that counts what it is asked for and can break off."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files`, path -> bytes; `statuses` has those that fail, `cut` those that end after so many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}
        self.cut: dict[str, int] = {}
        self.hangs: set[str] = set()  # of these nothing is sent, until `over`
        self.over = threading.Event()
        self.asked: list[tuple[str, int]] = []  # path, and the first byte that is wanted

    def handle_error(self, *_: object) -> None:
        """A client that went away is what these tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, path = self.server, self.path.lstrip("/")
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        server.asked.append((path, first))
        if path in server.hangs:
            server.over.wait()
        body = server.files.get(path)
        if status := server.statuses.get(path, 404 if body is None else 0):
            self.send_error(status)
            return
        assert body is not None
        if first and first >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : server.cut.get(path, len(body))])

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving_files() -> Iterator[FileServer]:
    server = FileServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
