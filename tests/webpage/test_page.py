"""What the page's buttons do, without a browser: answers are those of `sottovoce.load`, and errors are words."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.helpers.errors import refused

import sottovoce as sv
from sottovoce.adapters.layer_mix import LayerMix
from sottovoce.cli.main import main
from sottovoce.webpage import fragments, pictures
from sottovoce.webpage.examples import examples_beside, named_examples
from sottovoce.webpage.listener import Asked, Listener, told_plainly
from sottovoce.webpage.page import Page

PNG = b"\x89PNG\r\n\x1a\n"


def last(outputs: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    return list(outputs)[-1]


def answers(html: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'<p class="sv-answer">(.*?)</p>', html, re.S)]


def test_an_answer_comes_bit_by_bit_and_is_that_of_the_model(listener: Listener, clip: str) -> None:
    for task, own in (("asr", ""), ("asr", " Is she tired? "), ("emotion", None)):
        said = list(listener.stream(clip, Asked(task, own)))
        question = {"ask": own.strip()} if own else {"task": task}
        assert said[-1] == listener.model(clip, **question)  # type: ignore[arg-type]
        assert said[0] == "" and all(after.startswith(before) for before, after in pairwise(said))
    assert len(said) > 2


def test_the_question_is_shown_as_the_llm_reads_it(listener: Listener, clip: str) -> None:
    page = Page(listener)
    assert last(page.ask(clip, "gender", ""))[1] == listener.wording(Asked("gender")) != ""
    assert last(page.ask(clip, "gender", "Who is it?"))[1] == "Who is it?"


def test_slots_are_switched_off_one_at_a_time(listener: Listener, clip: str) -> None:
    model, page = listener.model, Page(listener)
    steps = list(page.slots(clip, "asr", "", list(listener.slots)))
    assert [len(answers(html)) for (html,) in steps] == [1, 2, 3]
    expected = [model(clip, "asr", slots=slots) for slots in ("both", "linguistic", "paralinguistic")]
    assert answers(steps[-1][0]) == expected and len(set(expected)) == 3
    assert len(answers(last(page.slots(clip, "asr", "", ["linguistic"]))[0])) == 2
    shown = last(page.slots(clip, "emotion", "", ["paralinguistic"]))[0]
    for slots in ("both", "linguistic"):
        for share in model.probabilities(clip, "emotion", slots=slots).values():
            assert f"{share:.1%}" in shown


def test_without_its_only_slot_nothing_is_asked(listener: Listener, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "slots", ("linguistic",))
    assert len(list(listener.without_each(clip, Asked("asr"), ["linguistic"]))) == 1


def test_attributes_are_bars_of_the_models_probabilities(listener: Listener, clip: str) -> None:
    assert listener.attributes == ("gender", "pitch", "tempo", "energy", "emotion")
    shares, drawn = last(Page(listener).attributes(clip))
    shown = re.findall(r'aria-valuenow="([\d.]+)" aria-label="(\w+)".*?width:([\d.]+)%', shares)
    expected = [pair for name in listener.attributes for pair in listener.model.probabilities(clip, name).items()]
    assert [label for _, label, _ in shown] == [label for label, _ in expected]
    for (value, _, width), (_, share) in zip(shown, expected, strict=True):
        assert float(value) == pytest.approx(share, abs=1e-3) and float(width) == pytest.approx(100 * share, abs=0.1)
    assert shares.count("sv-most") == 5
    assert drawn.count("<img") == 1 and "last layer" in drawn  # no slot mixes layers: said in words


def test_a_mix_of_layers_is_drawn(tiny_run: Path) -> None:
    listener = Listener(sv.load(tiny_run, device="cpu"))  # one of its own, which is changed
    module = listener.model.module
    mix = LayerMix([0, 1], module.encoder.dim)
    module.adapters["linguistic"].add_module("layer_mix", mix)
    module.slot_layers = module.slot_layers | {"linguistic": (1, 2)}
    assert listener.layers()["linguistic"] == {1: 0.5, 2: 0.5}
    shown = Page(listener).layers()
    assert shown.count("<img") == 1 and "paralinguistic" in shown
    assert "linguistic, " not in shown


def test_a_spectrogram_shows_a_tone_where_it_is() -> None:
    import librosa

    for hertz in (300.0, 2_500.0):
        samples = 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(16_000) / 16_000)
        levels = pictures.decibels(samples)
        assert levels.shape == (100, 80)
        loudest = librosa.mel_frequencies(82, fmax=8_000)[1:-1][int(levels.mean(0).argmax())]
        assert loudest == pytest.approx(hertz, rel=0.1)
        assert float((levels - pictures.decibels(samples / 10)).mean(0).max()) == pytest.approx(20, abs=0.5)
    assert pictures.spectrogram(samples).startswith(PNG)


def test_two_bundles_answer_side_by_side(
    listener: Listener, other: Listener, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = last(Page(listener, other).compare(clip, "asr", ""))[0]
    expected = [each.model(clip, "asr") for each in (listener, other)]
    assert answers(shown) == expected and len(set(expected)) == 2
    monkeypatch.setattr(other, "tasks", ("emotion",))
    assert "has not learned asr" in last(Page(listener, other).compare(clip, "asr", ""))[0]


@pytest.mark.parametrize("button", ["ask", "slots", "attributes", "compare"])
def test_a_clip_that_cannot_be_used_is_told_in_words(button: str, listener: Listener, unusable: dict[str, str]) -> None:
    page, outputs = Page(listener, listener), {"ask": 2, "attributes": 2}.get(button, 1)
    safe = page.told(getattr(page, button), outputs)
    for file in (None, *unusable.values()):
        shown = last(safe(file, "asr", ""))
        assert len(shown) == outputs + 1 and shown[-1].startswith('<div class="sv-note"')
        assert "<p" not in "".join(shown[:-1]) and "<section" not in "".join(shown[:-1])
        if file:
            assert Path(file).name in shown[-1] and str(Path(file).parent) not in shown[-1]


def test_each_fault_of_a_clip_has_its_code(listener: Listener, unusable: dict[str, str]) -> None:
    for file, code in ((None, "missing-key"), ("broken", "damaged"), ("silence", "bad-value"), ("long", "bad-value")):
        with refused(code, kind=sv.AudioError):  # type: ignore[arg-type]
            listener.tell(unusable[file] if file else None, Asked("asr"))


def test_what_was_said_before_a_fault_stays_and_faults_of_ours_are_no_notes(
    listener: Listener, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> None:
        def stream(*_: object, **__: object) -> Iterator[str]:
            yield "so far"
            raise error

        monkeypatch.setattr(listener.model, "stream", stream)

    page = Page(listener)
    fails(torch.OutOfMemoryError("CUDA out of memory"))
    shown = last(page.told(page.ask, 2)(clip, "asr", ""))
    assert shown[0] == "so far" and "memory" in shown[2]
    fails(RuntimeError("a fault of ours"))
    with pytest.raises(RuntimeError, match="of ours"):
        last(page.told(page.ask, 2)(clip, "asr", ""))
    with pytest.raises(KeyError):
        told_plainly(KeyError("x"), clip)
    monkeypatch.undo()
    assert last(page.ask(clip, "asr", ""))[0] == listener.model(clip, "asr")  # the lock was given back


def test_a_stream_that_is_left_frees_the_model(listener: Listener, clip: str) -> None:
    begun = listener.stream(clip, Asked("asr"))
    next(begun), next(begun)
    begun.close()
    assert listener.tell(clip, Asked("asr")).answer == listener.model(clip, "asr")


def test_several_who_ask_at_once_get_what_each_alone_would(listener: Listener, manifests: dict[str, Path]) -> None:
    clips = [str(manifests["test"].parent / f"test-{number}.wav") for number in range(4)]
    alone = [str(listener.model(clip, "asr")) for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(lambda clip: list(listener.stream(clip, Asked("asr")))[-1], clip) for clip in clips]
        tells = [pool.submit(listener.tell, clip, Asked("asr")) for clip in clips]
        assert [done.result() for done in streams] == alone
        assert [str(done.result().answer) for done in tells] == alone


def test_the_line_on_the_parts_names_no_folder_of_this_machine(tiny_run: Path, listener: Listener) -> None:
    tiny = Listener(sv.load(tiny_run, device="cpu"), "mine")
    assert tiny.name == "mine" and "/" not in tiny.parts and "tiny.pt" in tiny.parts and "frozen" in tiny.parts
    assert "LLM demo/backbones/llm (frozen)" in listener.parts


def test_text_of_others_is_text() -> None:
    hostile = "<img src=x onerror=alert(1)> {{this}} ${1+1} `x` \"'"
    for shown in (
        fragments.note(hostile),
        fragments.hint(hostile),
        fragments.card(hostile, hostile, hostile, {hostile: 1}),
    ):
        assert not set("{}$`") & set(shown) and "<img" not in shown
        assert hostile in unescape(shown)


def test_clips_of_the_run_beside_are_offered(tiny_run: Path, tmp_path: Path) -> None:
    offered = examples_beside(tiny_run)
    assert 3 < len(offered) <= 6 and len({e.file for e in offered}) == len(offered)
    assert all(e.file.is_file() for e in offered) and "we found the lamp" in {e.name for e in offered}
    assert examples_beside(tiny_run / "bundle") == offered and len(examples_beside(tiny_run, 2)) == 2
    shutil.copytree(tiny_run / "bundle", tmp_path / "bundle")
    assert examples_beside(tmp_path / "bundle") == []


def test_named_clips_are_offered_instead(clip: str, tmp_path: Path) -> None:
    assert [tuple(e) for e in named_examples([clip])] == [(Path(clip), "test-1.wav")]
    with refused("not-found", "none.wav", sv.SottovoceError):
        named_examples([clip, str(tmp_path / "none.wav")])
    with refused("bad-value", tmp_path, sv.AudioError):
        named_examples([str(tmp_path)])


def test_broken_answers_beside_are_named(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "bundle", tmp_path / "run" / "bundle")
    (tmp_path / "run" / "evaluation").mkdir()
    (tmp_path / "run" / "evaluation" / "predictions.jsonl").write_text(json.dumps({"id": 1}) + "\n")
    with pytest.raises(sv.SottovoceError):
        examples_beside(tmp_path / "run")


def test_missing_packages_are_one_message(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("gradio", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert main(["demo", str(tiny_run), "--no-browser"]) == 2
        told = capsys.readouterr().err
        assert "pip install 'sottovoce[page]'" in told and package in told and told.count("\n") == 1
