"""`sottovoce demo`: it serves a page until it is interrupted, and says in one message why it cannot."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.helpers.errors import refused

from sottovoce.cli.main import main
from sottovoce.errors import ConfigError
from sottovoce.webpage import command


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_page_is_served_until_it_is_interrupted(
    host: str, tiny_run: Path, clip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    port = free_port()

    class Interrupted:
        def wait(self) -> None:
            address = f"http://127.0.0.1:{port}/"
            seen.append(urllib.request.urlopen(address).read().decode())
            seen.append(urllib.request.urlopen(f"{address}theme.css").read().decode())
            seen.append(os.environ["GRADIO_TEMP_DIR"])
            assert list(Path(seen[2]).rglob("test-1.wav"))  # the example is served from there
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "Event", Interrupted)
    words = ["demo", str(tiny_run), "--against", str(tiny_run / "bundle"), "--example", clip, "--no-browser"]
    assert main([*words, "--host", host, "--port", str(port), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("page     http://")
    page, theme, folder = seen
    assert "Compare" in page and f"Sottovoce: {tiny_run}" in page  # two bundles of one recipe are told apart
    assert not re.search(r"""(?:@import|url\()\s*['"]?(?:https?:)?//""", page + theme)
    assert not Path(folder).exists() and "GRADIO_TEMP_DIR" not in os.environ
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)


def test_the_program_ends_without_a_traceback(tiny_run: Path) -> None:
    words = [sys.executable, "-m", "sottovoce", "demo", str(tiny_run), "--no-browser", "--port", str(free_port())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().split()[1]
        assert urllib.request.urlopen(address).status == 200
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors and errors.endswith("the page is closed\n")


def test_an_address_that_cannot_be_had_is_told(tiny_run: Path, taken: int) -> None:
    for port in (0, 70_000):
        with refused("bad-value", "--port", ConfigError):
            command.demo(str(tiny_run), port=port, browser=False)
    with refused("unavailable", "--port", ConfigError):
        command.demo(str(tiny_run), port=taken, browser=False)
    with refused("unavailable", "--host", ConfigError):
        command.demo(str(tiny_run), host="no.such.host.invalid", browser=False)


def test_a_folder_without_a_bundle_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path), "--no-browser"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
