"""Rows of text alone beside rows of speech: the LLM learns from both, adapters from speech only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from rich.console import Console
from tests.conftest import write_lines
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config import recipe as recipes
from sottovoce.data.examples import Example, Examples, collate
from sottovoce.data.utterance import Turn
from sottovoce.errors import ManifestError
from sottovoce.lightning_modules.curriculum import train_stages
from sottovoce.lightning_modules.run import Run, prepare_run
from sottovoce.scoring.predict import predict
from sottovoce.training.spoken_prompt import dialogue_of

STAGE = {"tasks": {"dialogue": 1, "asr": 1}, "train": ["paralinguistic", "linguistic", "llm"], "lr": 1e-2}
TALK = [{"role": "user", "text": "hello"}, {"role": "assistant", "text": "hi"}]
WRITTEN = [
    {"id": "w0", "text": "what is a lamp", "response": "It gives light."},
    {"id": "w1", "text": "and a book", "response": "One reads it.", "context": TALK},
    {"id": "w2", "text": "who made tea", "responses": {"dialogue": "You did."}},
]  # fmt: skip


def with_text(manifest: Path, name: str = "mixed") -> Path:
    lines = [json.loads(text) for text in manifest.read_text().splitlines()]
    prefix = manifest.stem
    return write_lines(
        manifest.with_name(f"{name}-{manifest.name}"), [*lines, *({**w, "id": f"{prefix}-{w['id']}"} for w in WRITTEN)]
    )


@pytest.fixture
def mixed(tree: dict[str, Any], manifests: dict[str, Path]) -> dict[str, Any]:
    """The tiny recipe with one stage that tunes the LLM, and written rows on all sides."""
    data = {**tree["data"], **{split: [{"manifest": str(with_text(file))}] for split, file in manifests.items()}}
    tuning = {"method": "lora", "layers": "0", "rank": 2}
    stage = {**STAGE, "epochs": 1, "batch_size": 4}
    return {**tree, "data": data, "llm": {**tree["llm"], "tuning": tuning}, "stages": {"joint": stage}}


@pytest.fixture
def run(mixed: dict[str, Any]) -> Run:
    run = quiet_run(mixed)
    run.module.start_stage("joint", 10)
    return run


def drawn(run: Run) -> tuple[list[Example], list[Example]]:
    """Examples of speech with targets, and of text alone."""
    draw = run.example_sampler("joint", cut=False)
    examples = [e for u in run.data.splits["train"].utterances if (e := draw(u, 0, 0)) is not None]
    spoken = [replace(e, target=e.target or "yes") for e in examples if e.utterance.audio]
    return spoken[:3], [e for e in examples if not e.utterance.audio]


def gradient(run: Run, examples: list[Example]) -> dict[str, torch.Tensor]:
    run.module.zero_grad()
    run.module.loss(collate(examples, run.audio_reader.read)).total.backward()
    weights = run.module.named_parameters()
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in weights if w.requires_grad}


def test_the_gradient_of_a_mixed_batch_is_that_of_both(run: Run) -> None:
    spoken, written = drawn(run)
    run.module.eval()
    both, speech, text = (gradient(run, examples) for examples in (spoken + written, spoken, written))
    for name in both:
        scale = both[name].abs().max().clamp(min=1e-6)  # a number may be the small difference of large ones
        torch.testing.assert_close(both[name] / scale, (speech[name] + text[name]) / scale, rtol=0, atol=1e-4)
        if name.startswith("adapters."):
            assert not text[name].any()
    assert any(text[name].any() for name in text if "lora" in name)


def test_a_written_turn_is_asked_as_users_ask_an_llm(run: Run) -> None:
    """No instruction about a voice, no slot; its context stands before it."""
    _, written = drawn(run)
    assert [(e.task, e.instruction, e.target) for e in written] == [
        ("dialogue", "", "It gives light."), ("dialogue", "", "One reads it."), ("dialogue", "", "You did."),
    ]  # fmt: skip
    last = dialogue_of(written[1], run.slots)
    assert [(turn.role, turn.pieces) for turn in last] == [
        ("user", ("hello",)), ("assistant", ("hi",)), ("user", ("and a book",)),
    ]  # fmt: skip


def test_a_spoken_turn_before_a_written_one_is_heard(run: Run) -> None:
    spoken, written = drawn(run)
    before = Turn("user", "hello", spoken[0].utterance.audio, "A voice."), Turn("assistant", "hi")
    example = replace(written[0], context=before)
    batch = collate([example], run.audio_reader.read)
    assert list(batch.clips) == [spoken[0].utterance.audio]
    assert gradient(run, [example])["adapters.linguistic.mlp.0.weight"].any()


def test_a_batch_of_text_alone_brings_a_stand_in(run: Run) -> None:
    """Where processes must make the same calls, each adapter runs on it; its share of the loss is nothing."""
    _, written = drawn(run)
    reader, module = run.audio_reader, run.module
    plain = module.loss(collate(written, reader.read)).total
    for cached in (True, False):
        stand_in = reader.stand_in(module.encoder, cached=cached)
        examples = Examples([], lambda *_: None, 1, None, reader.read, stand_in=stand_in)
        batch = examples.batch(written, reader.read)
        assert not batch.clips and len(batch.audio.lengths) == 1
        module.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(module), "lockstep", True)
            total = module.loss(batch).total
        total.backward()
        torch.testing.assert_close(total, plain)
        gradients = [weight.grad for weight in module.adapters.parameters()]
        assert all(grad is not None and not grad.any() for grad in gradients)
    assert collate(written, reader.read).audio.x.numel() == 0


def test_a_run_of_both_says_how_many_and_scores_speech(
    mixed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare_run(recipes.parse(mixed), Console(width=200))
    told = capsys.readouterr().err
    assert "3 of 15 utterances of train are text alone" in told and "3 of 8 utterances of validation" in told
    assert "3 lines of text alone in test are not scored" in told
    train_stages(run)
    assert all(not prediction.id.startswith("test-w") for prediction in predict(run))


def test_text_alone_trains(mixed: dict[str, Any], tmp_path: Path) -> None:
    """A stage whose batches are all text, and rows without speech that no task can use."""
    train = write_lines(tmp_path / "text.jsonl", WRITTEN)
    data = {**mixed["data"], "train": [{"manifest": str(train)}]}
    stages = {"joint": {**mixed["stages"]["joint"], "tasks": {"dialogue": 1}}}
    train_stages(quiet_run({**mixed, "data": data, "stages": stages}))
    with refused("empty", "stages.joint.tasks", ManifestError):
        quiet_run(
            {**mixed, "name": "other", "data": data, "stages": {"joint": {**stages["joint"], "tasks": {"asr": 1}}}}
        )


def test_lazy_rows_of_text(mixed: dict[str, Any], manifests: dict[str, Path]) -> None:
    file = Path(mixed["data"]["train"][0]["manifest"])
    records = [json.loads(text) for text in file.read_text().splitlines()]
    for record in records:
        if "audio" in record:
            record["seconds"] = soundfile.info(str(file.with_name(record["audio"]))).duration
            record["response"] = "yes"
    lazy = write_lines(file.with_name("lazy-mixed.jsonl"), records)
    data = {**mixed["data"], "train": [{"manifest": str(lazy)}], "validate": "lazy"}
    train_stages(quiet_run({**mixed, "data": data}))
