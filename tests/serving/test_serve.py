"""`sottovoce serve` in a process of its own, asked by the `openai` client; its options, and how it stops."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.helpers.chat_requests import PATH, body, clip, user
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.errors import ConfigError, MissingError
from sottovoce.serving.http.command import KEY, serve

ASK = "Is she tired?"


class Process:
    """The command, as a user starts it."""

    def __init__(self, bundle: Path, *words: str, **environment: str) -> None:
        command = [sys.executable, "-m", "sottovoce", "serve", str(bundle), "--port", "0", "--device", "cpu", *words]
        self.process = subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout
        self.ready = self.process.stdout.readline().strip()
        self.url = self.ready.rpartition(" ")[2]
        self.port = int(self.url.rpartition(":")[2].partition("/")[0] or 0)

    def present(self) -> float:
        """Requests that it has now."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        return float(
            next(line.split()[1] for line in page.splitlines() if line.startswith("sottovoce_requests_present "))
        )

    def close(self) -> tuple[int, str]:
        """Exit code and standard error, when it has ended."""
        self.process.terminate()
        _, told = self.process.communicate(timeout=60)
        return self.process.returncode, told


@pytest.fixture(scope="module")
def served(tiny_run: Path) -> Iterator[Process]:
    made = Process(tiny_run / "bundle", "--name", "quickstart", **{KEY: "right"})
    yield made
    made.close()


@pytest.fixture
def client(served: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai.OpenAI(base_url=served.url, api_key="right", max_retries=0) as made:
        yield made


def test_the_openai_client_hears_the_words_of_chat(
    client: openai.OpenAI,
    served: Process,
    tiny_run: Path,
    manifests: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [manifests["test"].parent / f"test-{i}.wav" for i in (0, 1)]
    words = ["--once", "--instruction", ASK, "--device", "cpu"]
    assert main(["chat", str(tiny_run / "bundle"), *(w for f in files for w in ("--audio", str(f))), *words]) == 0
    expected = [
        line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("answer ")
    ]
    assert served.ready.startswith("quickstart answers at http://127.0.0.1:")
    assert [model.id for model in client.models.list()] == ["quickstart"]
    turns: list[Any] = [{"role": "system", "content": ASK}]
    for file, words_of_chat in zip(files, expected, strict=True):
        turns.append(user(clip(file)))
        answer = client.chat.completions.create(model="quickstart", messages=turns)
        assert answer.choices[0].message.content == words_of_chat
        pieces = client.chat.completions.create(
            model="quickstart", messages=turns, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(pieces)
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert joined == words_of_chat and chunks[-1].usage == answer.usage
        turns.append(answer.choices[0].message.model_dump())


def test_the_openai_client_knows_the_refusals(client: openai.OpenAI, served: Process) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        part: Any = {"type": "input_audio", "input_audio": {"data": "bm8gc291bmQ=", "format": "wav"}}
        client.chat.completions.create(model="quickstart", messages=[user(part)])  # type: ignore[list-item]
    assert (bad.value.code, bad.value.param) == ("invalid_audio", "messages[0].content[0].input_audio")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o-audio-preview", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served.url, api_key="wrong").models.list()


def test_the_page_runs(
    served: Process, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What docs/serving.md shows, as it stands there."""
    shutil.copy(manifests["test"].parent / "test-1.wav", tmp_path / "question.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text("utf-8")
    [block] = re.findall(r"(?s)```python\n(.*?)```", page)
    there: dict[str, Any] = {}
    exec(block.replace("http://127.0.0.1:8000/v1", served.url).replace('"none"', '"right"'), there)  # our own page
    assert capsys.readouterr().out.strip() == there["answer"].choices[0].message.content
    again = there["client"].chat.completions.create(model="quickstart", messages=there["turns"])
    assert again.choices[0].message.role == "assistant"


def test_sigterm_answers_what_is_in_flight_and_ends(served: Process, manifests: dict[str, Path]) -> None:
    """A request whose head has come when the signal does gets its answer; nobody else is let in."""
    raw = json.dumps(body(user(clip(manifests["test"].parent / "test-0.wav"))) | {"model": "quickstart"}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer right\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(60)
        connection.sendall(head.encode() + raw[:100])
        end = time.monotonic() + 30
        while not served.present() and time.monotonic() < end:
            time.sleep(0.02)
        served.process.send_signal(signal.SIGTERM)
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", served.port)).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.02)
        assert served.process.poll() is None
        connection.sendall(raw[100:])
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200") and b'"finish_reason"' in answer
    assert served.process.wait(60) == 0
    assert served.process.stderr
    told = served.process.stderr.read()
    assert "Traceback" not in told and "right" not in told


def test_an_address_that_is_taken_is_told_before_the_model_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, refused("unavailable", "--port", ConfigError):
        serve("no such bundle", port=taken.getsockname()[1])
    with refused("unavailable", "--port", ConfigError):
        serve("no such bundle", host="no.such.host.invalid")
    with refused("bad-value", "--port", ConfigError):
        serve("no such bundle", port=70_000)


@pytest.mark.parametrize("option", ["batch_size", "max_seconds", "max_request_mb", "max_new_tokens", "timeout"])
def test_options_that_cannot_be(option: str) -> None:
    with refused("bad-value", f"--{option.replace('_', '-')}", ConfigError):
        serve("no such bundle", **{option: 0})
    with refused("bad-value", "--queue", ConfigError):
        serve("no such bundle", queue=-1)
    with refused("conflict", "--instruction", ConfigError):
        serve("no such bundle", task="asr", instruction="x")


def test_a_key_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "")
    with refused("unavailable", "--api-key", MissingError):
        serve("no such bundle", api_key=True)
    monkeypatch.setenv(KEY, "schlüssel")
    with refused("bad-value", "--api-key", ConfigError):
        serve("no such bundle")


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with refused("unavailable", "serve", MissingError):
        serve("no such bundle")
