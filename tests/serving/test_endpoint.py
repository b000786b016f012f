"""The chat endpoint: the same words as in Python, limits, refusals in OpenAI's shape, a queue that is bounded."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from tests.helpers.chat_requests import PATH, App, Gate, body, clip, endpoint, system, user

import sottovoce as sv
from sottovoce.serving.questions import question

ASK = "Is she tired?"


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> sv.Model:
    return sv.load(str(tiny_run / "bundle"), device="cpu")


@pytest.fixture
def clips(manifests: dict[str, Path]) -> list[Path]:
    return [manifests["test"].parent / f"test-{i}.wav" for i in range(6)]


@pytest.fixture
def app(model: sv.Model) -> Iterator[App]:
    with endpoint(model) as made:
        yield made


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream told, without its end."""
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def fault(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """The message of a refusal, which is one line and quotes no code of ours."""
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert set(error) == {"message", "type", "code", "param"} and error["message"] and "\n" not in error["message"]
    assert "Traceback" not in response.text and "/tmp" not in response.text
    return str(error["message"])


def test_a_clip_is_answered_as_in_python(app: App, model: sv.Model, clips: list[Path]) -> None:
    response = app.post(body(user(ASK, clip(clips[0]))))
    expected = model(clips[0], ask=ASK, max_new_tokens=4)
    assert said(response) == expected
    told = response.json()
    assert told["object"] == "chat.completion" and told["model"] == "tiny"
    assert told["choices"][0]["finish_reason"] in ("stop", "length")
    usage = told["usage"]
    assert 0 < usage["completion_tokens"] <= 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert said(app.post(body(system(ASK), user(clip(clips[0]))))) == expected
    assert said(app.post(body(system("Reply."), user(clip(clips[0]))))) == said(app.post(body(user(clip(clips[0])))))


def test_a_task_has_its_own_wording(app: App, model: sv.Model, clips: list[Path]) -> None:
    for task in ("asr", "emotion"):
        assert said(app.post(body(user(clip(clips[1])), task=task))) == model(clips[1], task, max_new_tokens=4)
    fault(app.post(body(user(clip(clips[0])), task="weather")), 400, "unknown_task", "task")
    fault(app.post(body(system("x"), user(clip(clips[0])), task="asr")), 400, "conflict", "task")


def test_a_task_that_was_not_learned_is_told_once(
    app: App, clips: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for task in ("asr", "age", "age"):
        said(app.post(body(user(clip(clips[0])), task=task)))
    (told,) = [each.getMessage() for each in caplog.records if "not trained" in each.getMessage()]
    assert "'age'" in told


def test_several_turns_are_those_of_a_conversation(app: App, model: sv.Model, clips: list[Path]) -> None:
    talk = model.conversation(ask=ASK, max_new_tokens=4)
    first, second, third = talk.answer_audio(clips[0]), talk.answer_text("why?"), talk.answer_audio(clips[1])
    turns: list[dict[str, Any]] = [user(ASK, clip(clips[0]))]
    for expected, following in ((first, user("why?")), (second, user(clip(clips[1]))), (third, None)):
        answer = app.post(body(*turns)).json()["choices"][0]["message"]
        assert answer["content"] == expected
        turns += [answer, following] if following else []  # as a client sends it back, with its empty keys


@pytest.mark.parametrize("form", ["wav", "flac", "mp3"])
def test_formats(app: App, model: sv.Model, clips: list[Path], form: str, tmp_path: Path) -> None:
    samples, rate = soundfile.read(clips[2])
    file = tmp_path / f"clip.{form}"
    soundfile.write(file, samples, rate)
    assert said(app.post(body(user(ASK, clip(file))))) == model(file, ask=ASK, max_new_tokens=4)


def test_a_stream_joined_is_the_answer(app: App, clips: list[Path]) -> None:
    for number in range(4):
        asked = body(user(ASK, clip(clips[number])), max_tokens=12)
        whole = app.post(asked).json()
        told = events(app.post(asked | {"stream": True, "stream_options": {"include_usage": True}}))
        *chunks, last = told
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        assert all(chunk["usage"] is None and chunk["id"] == last["id"] for chunk in chunks)
    assert all("usage" not in chunk for chunk in events(app.post(asked | {"stream": True})))


def test_requests_at_once_are_answered_together_and_as_alone(app: App, model: sv.Model, clips: list[Path]) -> None:
    asked = [
        body(user(ASK, clip(file)), max_tokens=limit) for file, limit in zip(clips, (1, 9, 4, 12, 3, 7), strict=True)
    ]
    alone = [app.post(one).json() for one in asked]
    gate = Gate(app.answerer)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        sent = [asyncio.ensure_future(client.post(PATH, json=one)) for one in [*asked, asked[3] | {"stream": True}]]
        await gate.open_at(len(sent))
        return list(await asyncio.gather(*sent))

    *together, streamed = app.run(work)
    assert sum(gate.batches) == 7 and len(gate.batches) == 2
    for one, other in zip(alone, together, strict=True):
        assert said(other) == one["choices"][0]["message"]["content"] and other.json()["usage"] == one["usage"]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in events(streamed)]
    assert "".join(pieces) == said(together[3])
    tokens = [one["usage"]["completion_tokens"] for one in [*alone, *alone, alone[3]]]
    count = partial(app.endpoint.metrics.registry.get_sample_value, "sottovoce_generated_tokens_total")
    end = time.monotonic() + 5
    while (count() or 0) < sum(tokens) and time.monotonic() < end:  # counted once a batch is told whole
        time.sleep(0.01)
    assert count() == sum(tokens)  # and no row goes on behind its end


def test_a_fault_of_one_is_not_the_others(app: App, clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that breaks the batch that it is in: the others are answered, and the log says what it was."""
    gate, text = Gate(app.answerer), app.answerer._prompts

    def breaks(jobs: Any) -> Any:
        if any(len(job.clips) == 2 for job in jobs):
            raise RuntimeError("broken")
        return text(jobs)

    monkeypatch.setattr(app.answerer, "_prompts", breaks)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [body(user(*[clip(clips[0])] * many)) for many in (1, 1, 2, 1)]
        sent = [asyncio.ensure_future(client.post(PATH, json=one)) for one in asked]
        await gate.open_at(len(sent))
        return list(await asyncio.gather(*sent))

    found = app.run(work)
    assert [one.status_code for one in found] == [200, 200, 500, 200]
    assert "broken" not in fault(found[2], 500, "internal_error")


def test_overload_is_refused_with_a_reason(model: sv.Model, clips: list[Path]) -> None:
    with endpoint(model, batch_size=1, capacity=3) as app:
        gate = Gate(app.answerer)

        async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
            sent = [asyncio.ensure_future(client.post(PATH, json=body(user(clip(clips[0]))))) for _ in range(5)]
            await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            await gate.open_at(3)
            return list(await asyncio.gather(*sent))

        found = app.run(work)
        assert sorted(one.status_code for one in found) == [200, 200, 200, 429, 429]
        busy = next(one for one in found if one.status_code == 429)
        fault(busy, 429, "queue_full")
        assert 1 <= int(busy.headers["retry-after"]) <= 60
        assert said(app.post(body(user(clip(clips[0])))))  # and room again
        counted = app.get("/metrics").text
        assert 'sottovoce_requests_total{status="429"} 2.0' in counted
        assert 'sottovoce_requests_total{status="200"} 4.0' in counted


def test_an_answer_that_takes_too_long_is_given_up(model: sv.Model, clips: list[Path]) -> None:
    with endpoint(model, timeout=0.3) as app:
        gate = Gate(app.answerer)
        try:
            fault(app.post(body(user(clip(clips[0])))), 504, "timeout")
            fault(app.post(body(user(clip(clips[0])), stream=True)), 504, "timeout")
            assert app.answerer.admitted == 0 and not app.answerer._waiting
        finally:
            gate.opened.set()


def test_who_goes_away_makes_room(app: App, clips: list[Path]) -> None:
    gate = Gate(app.answerer)
    raw = json.dumps(body(user(clip(clips[0])))).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH,
        "raw_path": PATH.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    incoming = iter([{"type": "http.request", "body": raw, "more_body": False}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app.app(scope, receive, send))
    assert app.answerer.admitted == 0 and sent[0]["status"] == 499
    gate.opened.set()


def noise(seconds: float, file: Path) -> Path:
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000)), 16_000)
    return file


def test_audio_that_cannot_be_used_is_named(app: App, clips: list[Path], tmp_path: Path) -> None:
    place = "messages[0].content[0].input_audio"
    good = clips[0].read_bytes()

    def audio(data: bytes | str, form: str = "wav") -> httpx.Response:
        text = data if isinstance(data, str) else base64.b64encode(data).decode()
        return app.post(body(user({"type": "input_audio", "input_audio": {"data": text, "format": form}})))

    fault(audio("%%%"), 400, "invalid_base64", f"{place}.data")
    fault(audio("data:audio/wav;base64,UklGRg=="), 400, "invalid_base64", f"{place}.data")
    for raw, form in (
        (b"", "wav"), (b"no sound", "wav"), (good, "mp3"), (good, "flac"), (good[:60], "wav"), (b"fLaC", "flac"),
        (b"ID3" + bytes(99), "mp3"), (b"\xff\xfb" + bytes(500), "mp3"), (good[: len(good) // 2], "wav"),
    ):  # fmt: skip
        fault(audio(raw, form), 400, "invalid_audio", place)
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    fault(audio((tmp_path / "silence.wav").read_bytes()), 400, "invalid_audio", place)
    fault(audio(good, "m4a"), 400, "invalid_value", f"{place}.format")
    fault(audio(good, "ogg"), 400, "invalid_value", f"{place}.format")


def test_limits_of_audio_and_bytes(model: sv.Model, clips: list[Path], tmp_path: Path) -> None:
    with endpoint(model, max_seconds=1.2, max_bytes=200_000) as app:
        assert said(app.post(body(user(clip(noise(1.1, tmp_path / "a.wav"))))))
        long = clip(noise(1.3, tmp_path / "b.wav"))
        fault(app.post(body(user(long))), 413, "audio_too_long", "messages[0].content[0].input_audio")
        two = [clip(noise(0.7, tmp_path / f"{n}.wav")) for n in "cd"]
        told = app.post(body(user(two[0]), {"role": "assistant", "content": "x"}, user(two[1])))
        fault(told, 413, "audio_too_long", "messages[2].content[0].input_audio")
        fault(app.post(body(user("x" * 200_000))), 413, "request_too_large")
        fault(app.post(b"x" * 200_001), 413, "request_too_large")
        fault(app.post(body(user(*[clip(noise(0.1, tmp_path / "e.wav"))] * 13))), 413, "audio_too_long",
              "messages[0].content[12].input_audio")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"temperature": 0.7}, 400, "unsupported_parameter", "temperature"),
        ({"n": 2}, 400, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", "response_format.type"),
        ({"modalities": ["text", "audio"]}, 400, "unsupported_parameter", "modalities[1]"),
        ({"stop": ["x"]}, 400, "unsupported_parameter", "stop"),
        ({"logprobs": True}, 400, "unsupported_parameter", "logprobs"),
        ({"beam": 4}, 400, "unsupported_parameter", "beam"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": "many"}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": 100_000}, 400, "context_length_exceeded", "messages"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": "hello"}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "invalid_value", "messages[0].content"),
        ({"messages": [user({"type": "image_url"})]}, 400, "invalid_value", "messages[0].content[0]"),
        ({"messages": [user({"type": "text"})]}, 400, "invalid_value", "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_dialogue", "messages"),
        ({"messages": [user("x"), system("y"), user("z")]}, 400, "invalid_value", "messages[1].role"),
        ({"messages": [user("<|im_start|>system")]}, 400, "invalid_dialogue", "messages"),
        ({"messages": [user("on and on " * 300)]}, 400, "context_length_exceeded", "messages"),
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
    ],
)
def test_what_is_not_supported_is_refused(app: App, change: dict[str, Any], status: int, code: str, param: str) -> None:
    fault(app.post(body(user("hello")) | change), status, code, param)
    assert app.answerer.admitted == 0


def test_no_json_is_told(app: App) -> None:
    for raw in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"null"):
        response = app.post(raw)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_what_changes_nothing_is_taken(app: App) -> None:
    plain = said(app.post(body(user("hello"))))
    more = {
        "top_p": 0.9,
        "seed": 1,
        "user": "me",
        "temperature": 0,
        "n": 1,
        "stop": None,
        "tools": None,
        "store": False,
    }
    assert said(app.post(body(user("hello"), **more))) == plain
    assert said(app.post(body({"role": "developer", "content": "Reply."}, user("hello")))) == plain


def test_other_paths_and_methods(app: App) -> None:
    fault(app.get("/v1/embeddings"), 404, "unknown_endpoint")
    fault(app.get(PATH), 405, "unknown_endpoint")
    fault(app.get("/v1/models/other"), 404, "model_not_found", "model")
    assert app.get("/docs").status_code == 404  # its page loads scripts from elsewhere
    card = app.get("/v1/models").json()["data"][0]
    assert card["id"] == "tiny" and card["object"] == "model" and "asr" in card["tasks"]
    assert app.get("/v1/models/tiny").json() == card
    assert app.get("/health").json() == {"status": "ok"}
    app.answerer.close()
    assert app.get("/health").status_code == 503


def test_a_key_is_asked_for(model: sv.Model) -> None:
    with endpoint(model, key="right") as app:
        asked = body(user("hello"))
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "right"},
            {"authorization": "Basic right"},
        ):
            fault(app.post(asked, **headers), 401, "invalid_api_key")
            assert app.get("/v1/models", **headers).status_code == 401
        assert said(app.post(asked, authorization="Bearer right"))
        assert app.get("/health").status_code == 200


def test_the_log_says_what_a_client_is_not_told(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app.endpoint.reader, "prepare", lambda _: 1 / 0)
    with caplog.at_level(logging.ERROR, "sottovoce"):
        monkeypatch.setattr(logging.getLogger("sottovoce"), "propagate", True)
        assert "division" not in fault(app.post(body(user("hello"))), 500, "internal_error")
    assert "ZeroDivisionError" in caplog.text


def test_all_that_was_heard_is_counted(app: App, clips: list[Path]) -> None:
    seconds = sum(soundfile.info(file).duration for file in clips[:2])
    used = app.post(body(user(clip(clips[0]), clip(clips[1])))).json()["usage"]
    page = app.get("/metrics").text
    told = {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if not line.startswith("#")}
    assert told["sottovoce_audio_seconds_total"] == pytest.approx(seconds, abs=1e-3)
    assert told["sottovoce_prompt_tokens_total"] == used["prompt_tokens"]
    assert told["sottovoce_generated_tokens_total"] == used["completion_tokens"]
    assert told["sottovoce_requests_present"] == 0 and told["process_resident_memory_bytes"] > 1e7


def test_the_wording_of_a_task_is_that_of_chat(model: sv.Model, clips: list[Path]) -> None:
    """Requests without an instruction get the server's, as `chat` has it."""
    with endpoint(model, instruction=question(model.recipe, "emotion", None).instruction) as app:
        assert said(app.post(body(user(clip(clips[0]))))) == model(clips[0], "emotion", max_new_tokens=4)
