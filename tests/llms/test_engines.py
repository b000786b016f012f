"""An OpenAI-compatible engine: a server that misbehaves costs a chat and never the run, and no secret is shown."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sottovoce.errors import ConfigError, MissingError
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Chat, Cut, Failure
from sottovoce.llms.openai_engine import OpenAIEngine
from sottovoce.openai_client import Retryable, retry_after

SECRET = "sk-very-secret-123"


def chat(text: str) -> Chat:
    return [{"role": "user", "content": text}]


class Server(ThreadingHTTPServer):
    """A chat server on localhost. `script(text, number)` says how the n-th request for a text is answered."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Callable[[str, int], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers_seen: list[str | None] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        self.at_once, self.most_at_once = 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, server = body["messages"][-1]["content"], self.server
        with server.lock:
            server.asked[text] += 1
            server.bodies.append(body)
            server.headers_seen.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            number = server.asked[text]
        try:
            what = server.script(text, number)
        finally:
            with server.lock:  # before the reply: who has it may be back at once
                server.at_once -= 1
        self.reply(what)

    def reply(self, what: Any) -> None:
        if callable(what):
            what(self)
            return
        status, said, headers = what if isinstance(what, tuple) else (200, what, {})
        raw = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None: ...


def says(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def echo(text: str, number: int) -> Any:
    return says(f"  you said {text}\n")


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


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    handler.wfile.write(json.dumps(says("half")).encode()[:-20])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("NETRC", os.devnull)
    servers: list[Server] = []

    def start(script: Callable[[str, int], Any] = echo) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


def engine_of(server: Server, **knobs: Any) -> OpenAIEngine:
    return OpenAIEngine(
        **{"base_url": server.url, "model": "m", "backoff": 0.001, "retries": 2, "timeout": 5.0, **knobs}
    )


def test_answers_come_in_the_order_of_the_chats_whatever_the_concurrency(serve: Callable[..., Server]) -> None:
    texts = [str(i) for i in range(24)]

    def script(text: str, number: int) -> Any:
        time.sleep(0.02 if int(text) % 5 == 0 else 0)
        return echo(text, number)

    server = serve(script)
    for concurrency in (1, 8):
        server.most_at_once = 0
        answers = engine_of(server, concurrency=concurrency).answer(list(map(chat, texts)), max_new_tokens=7)
        assert answers == [f"you said {text}" for text in texts]
        assert server.most_at_once <= concurrency
    assert server.most_at_once > 1


def test_the_request_is_what_the_api_wants(serve: Callable[..., Server]) -> None:
    server = serve()
    engine_of(server).answer([chat("a")], max_new_tokens=7, temperature=0.5, seed=3)
    wanted = {"model": "m", "messages": chat("a"), "max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert server.bodies == [wanted] and server.headers_seen == [None]


def test_what_passes_is_tried_again(serve: Callable[..., Server]) -> None:
    first: dict[str, Any] = {
        "500": (500, b"oops", {}),
        "503": (503, b"loading", {"Retry-After": "nonsense"}),
        "429": (429, {"error": "slow down"}, {"Retry-After": "0.01"}),
        "dated": (429, {}, {"Retry-After": formatdate(time.time() - 5, usegmt=True)}),
        "infinite": (429, {}, {"Retry-After": "nan"}),
        "not json": b"<html>gateway</html>",
        "no choices": {"choices": []},
        "another shape": [1, 2],
        "no text": says(["a", "b"]),
        "half a pair": b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        "drops": drops,
        "breaks off": breaks_off,
    }
    server = serve(lambda text, number: first[text] if number == 1 else echo(text, number))
    answers = engine_of(server).answer(list(map(chat, first)), max_new_tokens=7)
    assert answers == [f"you said {text}" for text in first]
    assert set(server.asked.values()) == {2}


def test_retry_after_is_kept_to(serve: Callable[..., Server]) -> None:
    times = []

    def script(text: str, number: int) -> Any:
        times.append(time.monotonic())
        return (429, {}, {"Retry-After": "0.3"}) if number == 1 else echo(text, number)

    assert engine_of(serve(script)).answer([chat("a")], max_new_tokens=7) == ["you said a"]
    assert times[1] - times[0] >= 0.3


def test_a_server_cannot_make_us_wait_for_ever() -> None:
    engine = OpenAIEngine(base_url="http://h/v1", model="m", backoff=1.0)
    assert engine.server._pause(0, Retryable("", retry_after("86400"))) == 60.0
    pauses = [engine.server._pause(n, Retryable("")) for n in range(4)]
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses))
    assert len({engine.server._pause(0, Retryable("")) for _ in range(9)}) > 1  # clients do not come back together


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [
        ((500, b"", {}), "HTTP 500, 3 times", 3),
        (b"rubbish", "what came back is no chat completion, 3 times", 3),
        (drops, "the server cannot be reached (ConnectionError), 3 times", 3),
        (says(""), "the answer is empty", 1),
        (says(None), "the answer is empty", 1),
        ((400, {"error": "too  long"}, {}), 'HTTP 400: {"error": "too long"}', 1),
    ],
)
def test_what_does_not_pass_is_a_failure_of_that_chat_alone(
    serve: Callable[..., Server], reply: Any, reason: str, attempts: int
) -> None:
    server = serve(lambda text, number: reply if text == "bad" else echo(text, number))
    answers = engine_of(server).answer([chat("a"), chat("bad"), chat("b")], max_new_tokens=7)
    assert answers == ["you said a", Failure(reason), "you said b"]
    assert server.asked["bad"] == attempts


@pytest.mark.parametrize("slow", [hangs, drips])
def test_a_slow_answer_is_a_failure(serve: Callable[..., Server], slow: Any) -> None:
    server = serve(lambda text, number: slow if text == "bad" else echo(text, number))
    answers = engine_of(server, timeout=1.5, retries=1).answer([chat("bad"), chat("a")], max_new_tokens=7)
    assert answers == [Failure("no answer within 1.5 s, 2 times"), "you said a"]


def test_a_server_that_is_gone_costs_a_count(serve: Callable[..., Server]) -> None:
    server = serve()
    server.shutdown()
    server.server_close()
    answers = engine_of(server, concurrency=2).answer([chat(str(i)) for i in range(40)], max_new_tokens=7)
    assert all(isinstance(answer, Failure) for answer in answers)
    reasons = Counter(answer.reason for answer in answers if isinstance(answer, Failure))
    assert reasons["given up: the server does not answer"] >= 30  # and was not asked 40 * 3 times
    assert reasons["the server cannot be reached (ConnectionError), 3 times"] >= 8


def test_it_gives_up_on_troubles_in_a_row_only(serve: Callable[..., Server]) -> None:
    server = serve(lambda text, number: echo(text, number) if int(text) % 4 == 3 else (500, b"", {}))
    answers = engine_of(server, concurrency=1, retries=0).answer([chat(str(i)) for i in range(24)], max_new_tokens=7)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, str)] == [3, 7, 11, 15, 19, 23]
    assert sum(server.asked.values()) == 24


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_at_once_and_never_shown(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(lambda text, number: (status, f"bad key {SECRET}".encode(), {}))
    with pytest.raises(MissingError, match="refuses the key in MY_KEY") as caught:
        engine_of(server, api_key_env="MY_KEY", retries=9).answer([chat("a")], max_new_tokens=7)
    assert SECRET not in str(caught.value)
    assert server.headers_seen == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("status", [404, 405, 301])
def test_an_unknown_model_is_told_at_once(serve: Callable[..., Server], status: int) -> None:
    server = serve(lambda text, number: (status, {"error": "no model m"}, {"Location": "/elsewhere"}))
    with pytest.raises(ConfigError, match=f"HTTP {status} .* model 'm'.*(no model m|/elsewhere).*/v1"):
        engine_of(server, retries=9, concurrency=1).answer([chat("a"), chat("b")], max_new_tokens=7)
    assert sum(server.asked.values()) <= 2


def test_secrets_stay_out_of_names_reasons_and_files(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(lambda text, number: (400, f"no {SECRET}".encode(), {}) if text == "bad" else echo(text, number))
    engine = engine_of(server, api_key_env="MY_KEY")
    kept = CachedEngine(engine, tmp_path / "kept")
    answers = kept.answer([chat("bad"), chat("a")], max_new_tokens=7)
    assert answers == [Failure("HTTP 400: no ***"), "you said a"]
    assert SECRET not in f"{engine.name} {kept.name} {engine!r} {(tmp_path / 'kept').read_text()}"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "api_key_env"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "api_key_env"),
        ({"base_url": "http://host:port/v1"}, "not an address"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_knobs_that_make_no_sense(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ENGINES.build({"type": "openai", "base_url": "http://host/v1", "model": "m", **knobs})
    assert SECRET not in str(caught.value)


def test_no_password_is_fetched_from_elsewhere(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MY_KEY", "mine")
    server = serve()
    for variable in (None, "MY_KEY"):
        engine_of(server, api_key_env=variable).answer([chat("a")], max_new_tokens=7)
    assert server.headers_seen == [None, "Bearer mine"]


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(MissingError, match="MY_KEY is not set"):
        OpenAIEngine(base_url="http://host/v1", model="m", api_key_env="MY_KEY")


def test_names_tell_servers_and_models_apart() -> None:
    names = [
        OpenAIEngine(base_url=url, model=model, known_as=known).name
        for url, model, known in [("http://a/v1", "m", None), ("http://b/v1", "m", None), ("http://a/v1", "n", None)]
    ]
    assert len(set(names)) == 3
    moved = [OpenAIEngine(base_url=f"http://{host}/v1/", model="m", known_as="judge").name for host in "ab"]
    assert moved == ["judge", "judge"]


def test_an_answer_that_was_cut_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda text, number: says("and then", "length" if text == "long" else "stop"))
    engine = engine_of(server)
    for _ in range(2):  # the second time from the file
        answers = CachedEngine(engine, tmp_path / "kept").answer([chat("long"), chat("short")], max_new_tokens=2)
        assert answers == ["and then", "and then"] and [isinstance(a, Cut) for a in answers] == [True, False]
    assert sum(server.asked.values()) == 2


# The local engine
