"""An OpenAI-compatible engine: a server that misbehaves costs a chat and never the run, and no secret is shown."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.errors import refused
from tests.helpers.servers import Serve, Server, breaks_off, drips, drops, floods, hangs

from sottovoce.errors import Code, ConfigError, MissingError
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.llms.engines import Chat, Cut, Failure
from sottovoce.llms.openai_engine import OpenAIEngine

SECRET = "sk-very-secret-123"


def chat(text: str) -> Chat:
    return [{"role": "user", "content": text}]


def says(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def echo(text: str, number: int) -> Any:
    return says(f"  you said {text}\n")


def engine_of(server: Server, **knobs: Any) -> OpenAIEngine:
    return OpenAIEngine(**{"base_url": server.url, "model": "m", "retries": 2, "timeout": 5.0, **knobs})


def test_answers_come_in_the_order_of_the_chats_whatever_the_concurrency(serve: Serve) -> None:
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


def test_the_request_is_what_the_api_wants(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)  # of another server
    monkeypatch.setenv("MY_KEY", "mine")
    server = serve(echo)
    for variable in (None, "MY_KEY"):
        engine_of(server, api_key_env=variable).answer([chat("a")], max_new_tokens=7, temperature=0.5, seed=3)
    wanted = {"model": "m", "messages": chat("a"), "max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert server.bodies == [wanted] * 2 and server.keys == [None, "Bearer mine"]
    assert server.paths == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize(
    "first",
    [
        drops, (500, b"oops", {}), (503, b"loading", {"Retry-After": "nonsense"}),
        (429, {"error": "slow down"}, {"Retry-After": "0.3"}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(serve: Serve, first: Any) -> None:
    times = []

    def script(text: str, number: int) -> Any:
        times.append(time.monotonic())
        return first if number == 1 else echo(text, number)

    assert engine_of(serve(script)).answer([chat("a")], max_new_tokens=7) == ["you said a"]
    assert len(times) == 2 and times[1] - times[0] < 3
    assert not isinstance(first, tuple) or first[0] != 429 or times[1] - times[0] >= 0.3


NO_CHAT = "what came back is no chat completion"


@pytest.mark.parametrize(
    ("reply", "reason", "attempts"),
    [
        ((500, b"", {}), "HTTP 500 (retries: 2)", 3),
        (drops, "connection failed: RemoteProtocolError (retries: 2)", 3),
        ((429, b"", {"Retry-After": "86400"}), "HTTP 429 (retries: 2)", 1),  # nobody waits a day
        (breaks_off, "the answer broke off (RemoteProtocolError)", 1),
        (floods, "the answer is longer than 5 s or 16 MiB", 1),
        (b"<html>gateway</html>", NO_CHAT, 1),
        ({"choices": []}, NO_CHAT, 1),
        ([1, 2], NO_CHAT, 1),
        (says(["a", "b"]), NO_CHAT, 1),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', NO_CHAT, 1),
        (says(""), "the answer is empty", 1),
        (says(None), "the answer is empty", 1),
        ((400, {"error": "too  long"}, {}), 'HTTP 400: {"error": "too long"}', 1),
    ],
)
def test_what_does_not_pass_is_a_failure_of_that_chat(serve: Serve, reply: Any, reason: str, attempts: int) -> None:
    server = serve(lambda text, number: reply if text == "bad" else echo(text, number))
    answers = engine_of(server).answer([chat("a"), chat("bad"), chat("b")], max_new_tokens=7)
    assert answers == ["you said a", Failure(reason), "you said b"]
    assert server.asked["bad"] == attempts


@pytest.mark.parametrize(
    ("slow", "reason"),
    [(hangs, "no answer within 1 s (retries: 1)"), (drips, "the answer is longer than 1 s or 16 MiB")],
)
def test_a_slow_answer_is_a_failure(serve: Serve, slow: Any, reason: str) -> None:
    server = serve(lambda text, number: slow if text == "bad" else echo(text, number))
    answers = engine_of(server, timeout=1.0, retries=1).answer([chat("bad"), chat("a")], max_new_tokens=7)
    assert answers == [Failure(reason), "you said a"]


def test_a_server_that_is_gone_costs_a_count(serve: Serve) -> None:
    server = serve(echo)
    server.shutdown()
    server.server_close()
    engine = engine_of(server, concurrency=2, retries=0)
    answers = engine.answer([chat(str(i)) for i in range(40)], max_new_tokens=7)
    reasons = Counter(answer.reason for answer in answers if isinstance(answer, Failure))
    assert reasons["given up: the server does not answer"] >= 30 and reasons.total() == 40
    assert reasons["connection failed: ConnectError (retries: 0)"] >= 8


def test_it_gives_up_on_lost_requests_in_a_row_only(serve: Serve) -> None:
    server = serve(lambda text, number: echo(text, number) if int(text) % 4 == 3 else (500, b"", {}))
    answers = engine_of(server, concurrency=1, retries=0).answer([chat(str(i)) for i in range(24)], max_new_tokens=7)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, str)] == [3, 7, 11, 15, 19, 23]
    assert sum(server.asked.values()) == 24


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_and_never_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(lambda text, number: (status, f"bad key {SECRET}".encode(), {}))
    with refused("unavailable", "api_key_env", MissingError) as caught:
        engine_of(server, api_key_env="MY_KEY", retries=9).answer([chat("a")], max_new_tokens=7)
    assert "MY_KEY" in str(caught.value) and SECRET not in str(caught.value)
    assert server.keys == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("status", [404, 405, 301])
def test_an_unknown_model_is_told_at_once(serve: Serve, status: int) -> None:
    server = serve(lambda text, number: (status, {"error": "no model m"}, {"Location": "/elsewhere"}))
    with refused("not-found", "model", ConfigError) as caught:
        engine_of(server, retries=9, concurrency=1).answer([chat("a"), chat("b")], max_new_tokens=7)
    assert "no model m" in str(caught.value) and sum(server.asked.values()) <= 2


def test_secrets_stay_out_of_names_and_files(serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = serve(lambda text, number: (400, f"no {SECRET}".encode(), {}) if text == "bad" else echo(text, number))
    engine = engine_of(server, api_key_env="MY_KEY")
    cached = CachedEngine(engine, tmp_path / "answers")
    answers = cached.answer([chat("bad"), chat("a")], max_new_tokens=7)
    assert answers == [Failure("HTTP 400: no ***"), "you said a"]
    assert SECRET not in f"{engine.name} {cached.name} {engine!r} {(tmp_path / 'answers').read_text()}"


NEWER = {  # what models of OpenAI, and Gemini's endpoint, say to the parameters that others want
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model.",
    "temperature": "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported.",
    "seed": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
}


def test_a_server_that_refuses_a_parameter_is_given_up_and_the_knob_named(serve: Serve) -> None:
    told: list[str] = []

    def script(text: str, number: int) -> Any:
        refused_names = [name for name in NEWER if name in server.bodies[-1]]
        return (400, {"error": {"message": NEWER[refused_names[0]]}}, {}) if refused_names else echo(text, number)

    server = serve(script)
    knobs: dict[str, Any] = {}
    for more in (
        {"max_tokens_key": "max_completion_tokens"},
        {"omit": ["temperature"]},
        {"omit": ["temperature", "seed"]},
    ):
        server.asked.clear()
        answers = engine_of(server, concurrency=1, **knobs).answer([chat(str(i)) for i in range(40)], max_new_tokens=7)
        assert server.asked.total() == 8 and all(isinstance(answer, Failure) for answer in answers)
        (given_up,) = {answer.reason for answer in answers[8:] if isinstance(answer, Failure)}
        told.append(given_up)
        knobs |= more
    remedies = ("set max_tokens_key=max_completion_tokens", "set omit=[temperature]", "set omit=[seed]")
    assert all(text.endswith(remedy) for text, remedy in zip(told, remedies, strict=True))
    assert engine_of(server, **knobs).answer([chat("a")], max_new_tokens=7) == ["you said a"]
    assert server.bodies[-1] == {"model": "m", "messages": chat("a"), "max_completion_tokens": 7}


def test_equal_refusals_beside_answers_are_those_of_their_chats(serve: Serve) -> None:
    server = serve(lambda text, number: echo(text, number) if text == "0" else (400, {"error": "filtered"}, {}))
    engine_of(server, concurrency=1).answer([chat(str(i)) for i in range(20)], max_new_tokens=7)
    assert server.asked.total() == 20


def test_more_keys_of_a_request_are_part_of_the_name(serve: Serve) -> None:
    server, more = serve(echo), {"chat_template_kwargs": {"enable_thinking": False}}
    engine = engine_of(server, extra_body=more)
    engine.answer([chat("a")], max_new_tokens=7)
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert engine.name != engine_of(server).name


def test_thoughts_are_no_part_of_an_answer(serve: Serve, tmp_path: Path) -> None:
    replies = {"a": says("<think>Well.</think>\n\nYes."), "b": says("<think>Well, I", "length")}
    engine = CachedEngine(engine_of(serve(lambda text, number: replies[text])), tmp_path / "answers")
    good, endless = engine.answer([chat("a"), chat("b")], max_new_tokens=7)
    assert good == "Yes." and isinstance(endless, Failure) and "thoughts" in endless.reason


@pytest.mark.parametrize(
    ("knobs", "where", "code"),
    [
        ({"omit": ["messages"]}, "omit[0]", "bad-value"),
        ({"max_tokens_key": "tokens"}, "max_tokens_key", "bad-value"),
        ({"base_url": "localhost:8000"}, "base_url", "bad-value"),
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "base_url", "bad-value"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "base_url", "bad-value"),
        ({"base_url": "http://host:port/v1"}, "base_url", "bad-value"),
        ({"concurrency": 0}, "concurrency", "bad-value"),
        ({"retries": -1}, "retries", "bad-value"),
        ({"timeout": 0.0}, "timeout", "bad-value"),
        ({"api_key_env": "NO_KEY"}, "api_key_env", "unavailable"),
        ({"api_key_env": "ODD_KEY"}, "api_key_env", "bad-value"),
    ],
)
def test_knobs_that_make_no_sense(monkeypatch: Any, knobs: dict[str, Any], where: str, code: Code) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("ODD_KEY", f"{SECRET}ü")
    with refused(code, where) as caught:
        ENGINES.build({"type": "openai", "base_url": "http://host/v1", "model": "m", **knobs})
    assert SECRET not in str(caught.value)


def test_names_tell_servers_and_models_apart() -> None:
    names = [
        OpenAIEngine(base_url=url, model=model).name
        for url, model in [("http://a/v1", "m"), ("http://b/v1", "m"), ("http://a/v1", "n")]
    ]
    assert len(set(names)) == 3
    moved = [OpenAIEngine(base_url=f"http://{host}/v1/", model="m", known_as="judge").name for host in "ab"]
    assert moved == ["judge", "judge"]


def test_an_answer_that_was_cut_says_so(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda text, number: says("and then", "length" if text == "long" else "stop"))
    engine = engine_of(server)
    for _ in range(2):  # the second time from the file
        answers = CachedEngine(engine, tmp_path / "answers").answer([chat("long"), chat("short")], max_new_tokens=2)
        assert answers == ["and then", "and then"] and [isinstance(a, Cut) for a in answers] == [True, False]
    assert sum(server.asked.values()) == 2
