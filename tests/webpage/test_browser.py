"""The page in headless Chromium: spoken to, looked at, and asking no server but its own."""

import io
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect, sync_playwright

from sottovoce.webpage.command import served
from sottovoce.webpage.examples import Example
from sottovoce.webpage.listener import Listener
from sottovoce.webpage.page import build, looks

HERTZ = 440  # of what is spoken into the microphone
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)  # fmt: skip
SECONDS = 60  # a machine that runs much else at once is waited for
expect.set_options(timeout=SECONDS * 1000)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, whose microphone hears a tone."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        why = "Chromium is not installed: apt-get install chromium, or any other build of it on the PATH"
        (pytest.fail if os.environ.get("CI_BROWSER") else pytest.skip)(why)
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    soundfile.write(spoken, 0.4 * np.sin(2 * np.pi * HERTZ * np.arange(4 * 48_000) / 48_000), 48_000, "PCM_16")
    with sync_playwright() as driver:
        switches = [*SWITCHES, f"--use-file-for-fake-audio-capture={spoken}"]
        with driver.chromium.launch(executable_path=program, args=switches) as started:
            yield started


@pytest.fixture(scope="module")
def connections() -> Iterator[list[Any]]:
    """Addresses outside of this machine that our own process has connected to."""
    found: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            found.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched)
        yield found


@pytest.fixture(scope="module")
def address(
    listener: Listener, other: Listener, clip: str, connections: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("clips")))
        patch.setattr(other, "name", "tuned")
        blocks = build(listener, [Example(Path(clip), "a tone")], other)
        with served(blocks, "127.0.0.1", None, **looks()) as there:
            yield there


@pytest.fixture
def tab(browser: Browser, address: str, connections: list[Any]) -> Iterator[Page]:
    """The page, just opened; it has asked no other server, and nothing has failed, when the test ends."""
    strays: list[str] = []
    faults: list[str] = []
    home = urlsplit(address).netloc
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)

        def sent(url: str) -> None:
            if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != home:
                strays.append(url)

        def said(message: ConsoleMessage) -> None:
            if message.type == "error":
                faults.append(message.text)

        page.on("request", lambda request: sent(request.url))
        page.on("websocket", lambda opened: sent(opened.url))
        page.on("response", lambda got: faults.append(f"{got.status} {got.url}") if got.status >= 400 else None)
        # the stream of events ends when the page has all it waits for
        page.on("requestfailed", lambda lost: None if "queue/data" in lost.url else faults.append(lost.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", said)
        page.goto(address)
        expect(page.locator("#do-ask")).to_be_visible()
        yield page
    assert not strays and not connections
    assert not faults


def upload(page: Page, file: str) -> None:
    page.get_by_label("Upload file", exact=False).first.click()
    page.locator("#clip input[type=file]").set_input_files(file)
    expect(page.locator("#clip").get_by_label("Play", exact=False).first).to_be_visible()


def choose(page: Page, task: str) -> None:
    page.locator("#task input").click()
    page.get_by_role("option", name=task, exact=True).click()


def show(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def colours(part: Page | Locator) -> int:
    """How many there are in a screenshot: a few where nothing is drawn."""
    image = Image.open(io.BytesIO(part.screenshot())).convert("RGB")
    return len(np.unique(np.asarray(image).reshape(-1, 3), axis=0))


def test_a_clip_that_is_uploaded_is_answered_bit_by_bit(
    tab: Page, listener: Listener, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, stream = listener.model(clip, "asr"), listener.model.stream

    def slowly(*words: Any, **knobs: Any) -> Iterator[str]:
        for piece in stream(*words, **knobs):
            yield piece
            time.sleep(0.15)

    monkeypatch.setattr(listener.model, "stream", slowly)
    tab.evaluate(
        "() => {window.seen = new Set();"
        "setInterval(() => window.seen.add(document.querySelector('#answer textarea').value), 10)}"
    )
    empty = colours(tab.locator("#answer textarea"))
    upload(tab, clip)
    tab.locator("#do-ask").click()
    answer = tab.locator("#answer textarea")
    expect(answer).to_have_value(str(expected))
    expect(tab.locator("#wording textarea")).not_to_have_value("")
    seen = sorted(tab.evaluate("() => [...window.seen]"), key=len)
    assert len(seen) > 2 and seen[0] == "" and seen[-1] == expected
    assert all(expected.startswith(part) for part in seen)
    assert colours(answer) > empty + 20
    tab.locator("#own textarea").fill("Is she tired?")
    expect(answer).to_have_value("")  # it belonged to another question
    tab.locator("#do-ask").click()
    expect(answer).to_have_value(str(listener.model(clip, ask="Is she tired?")))


def test_an_answer_that_is_stopped_frees_the_model(
    tab: Page, listener: Listener, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, expected = listener.model.stream, str(listener.model(clip, "dialogue"))

    def slowly(*words: Any, **knobs: Any) -> Iterator[str]:
        for piece in stream(*words, **knobs):
            yield piece
            time.sleep(0.3)

    with monkeypatch.context() as patch:
        patch.setattr(listener.model, "stream", slowly)
        upload(tab, clip)
        choose(tab, "dialogue")
        tab.locator("#do-ask").click()
        answer = tab.locator("#answer textarea")
        expect(answer).not_to_have_value("")
        tab.locator("#stop").click()
        tab.wait_for_timeout(500)
        said = answer.input_value()
        tab.wait_for_timeout(700)
        assert answer.input_value() == said != expected and expected.startswith(said)
    show(tab, "Slots")
    tab.locator("#do-slots").click()
    expect(tab.locator("#sides .sv-answer").first).to_have_text(expected)


def test_a_clip_that_is_spoken_is_answered(tab: Page, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(upload: Route) -> None:
        time.sleep(1)  # as over a slow line: asked before it is there, the page would know of no clip
        upload.continue_()

    heard: list[str] = []
    tab.route("**/upload*", slowly)
    clip_of = listener._clip
    monkeypatch.setattr(listener, "_clip", lambda file, *rate: (heard.append(str(file)), clip_of(file, *rate))[1])
    tab.get_by_role("button", name="Record", exact=True).click()
    tab.wait_for_timeout(1_500)  # of speech
    tab.locator("#clip").get_by_role("button", name="Stop", exact=True).click()
    expect(tab.locator("#clip").get_by_label("Play", exact=False).first).to_be_visible()
    tab.locator("#do-ask").click()
    expect(tab.locator("#answer textarea")).not_to_have_value("")
    tab.wait_for_function("() => !document.querySelector('#answer .generating')")
    samples, rate = soundfile.read(heard[-1], dtype="float32", always_2d=True)
    assert 0.8 < len(samples) / rate < 4
    middle = samples[len(samples) // 4 : -len(samples) // 4, 0]
    loudest = np.abs(np.fft.rfft(middle)).argmax() * rate / len(middle)
    assert loudest == pytest.approx(HERTZ, abs=5)
    expect(tab.locator("#answer textarea")).to_have_value(str(listener.model(heard[-1], "asr")))


def test_slots_are_switched_off_in_the_page(tab: Page, listener: Listener, clip: str) -> None:
    tab.get_by_role("button", name="a tone").click()
    expect(tab.locator("#clip").get_by_label("Play", exact=False).first).to_be_visible()
    show(tab, "Slots")
    tab.locator("#do-slots").click()
    said = tab.locator("#sides .sv-answer")
    both, one, two = (str(listener.model(clip, "asr", slots=s)) for s in ("both", "linguistic", "paralinguistic"))
    expect(said).to_have_text([both, one, two])
    assert colours(tab.locator("#sides")) > 20
    tab.locator("#off").get_by_label("paralinguistic", exact=True).uncheck()
    tab.locator("#do-slots").click()
    expect(said).to_have_text([both, two])


def test_attributes_are_shown_with_probabilities_and_pictures(tab: Page, listener: Listener, clip: str) -> None:
    upload(tab, clip)
    show(tab, "Attributes")
    tab.locator("#do-attributes").click()
    shown = tab.locator("#shares .sv-bar span")
    shares = [share for task in listener.attributes for share in listener.model.probabilities(clip, task).values()]
    expect(shown).to_have_text([f"{share:.1%}" for share in shares])
    assert len(shares) == 12
    picture = tab.locator("#drawn img")
    assert picture.evaluate("image => image.naturalWidth") > 1000 and colours(picture) > 50
    wide = tab.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def test_two_bundles_answer_in_the_page(tab: Page, listener: Listener, other: Listener, clip: str) -> None:
    upload(tab, clip)
    choose(tab, "emotion")
    show(tab, "Compare")
    tab.locator("#do-compare").click()
    expect(tab.locator("#both .sv-answer")).to_have_text([str(one.model(clip, "emotion")) for one in (listener, other)])
    expect(tab.locator("#both h3")).to_have_text(["quickstart", "tuned"])
    assert colours(tab.locator("#both")) > 20


def test_what_a_user_can_do_wrong_is_told_in_the_page(tab: Page, unusable: dict[str, str]) -> None:
    note = tab.locator("#note .sv-note")
    expect(note).to_have_count(0)
    expect(tab.locator("#do-ask")).to_be_disabled()  # there is no clip
    upload(tab, unusable["silence"])
    expect(tab.locator("#do-ask")).to_be_enabled()
    expect(note).to_have_count(0)
    for name, button in (("Slots", "#do-slots"), ("Attributes", "#do-attributes"), ("Compare", "#do-compare")):
        show(tab, name)
        tab.locator(button).click()
        expect(note).to_contain_text("silence.wav")
    assert "Traceback" not in tab.content()
