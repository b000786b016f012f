"""Rows that the LLM cannot read are named before the first step, on all sides, and leave nothing else out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tests.conftest import write_lines, write_tone
from tests.encoders.test_hf import save_parakeet, save_w2v_bert
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.adapters import ADAPTERS, Adapter
from sottovoce.config.recipe import SPLITS
from sottovoce.data.examples import collate
from sottovoce.data.utterance import Turn, Utterance
from sottovoce.encoders import ENCODERS
from sottovoce.encoders.base import Encoder
from sottovoce.errors import ConfigError, ManifestError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.curriculum import train_stages
from sottovoce.lightning_modules.run import Run
from sottovoce.scoring.predict import predict
from sottovoce.training.readings import Reading, scored_readings, stage_readings
from sottovoce.training.row_lengths import _Row
from sottovoce.training.spoken_prompt import dialogue_of

CONTEXT = 512  # of the tests' LLM
MARK = "five <|im_start|> ok"


@pytest.mark.parametrize(
    "node",
    [
        {"type": "frame_stacking_mlp", "hidden": 4, "stack": 5},
        {"type": "frame_stacking_mlp", "hidden": 4, "stack": 3},
        {"type": "pooled_soft_prompt", "tokens": 7, "heads": 2, "feedforward": 4},
        {"type": "linear", "stack": 4},
        {"type": "conv1d", "stride": 4, "hidden": 4},
        {"type": "conv1d", "stride": 3, "kernel": 8, "hidden": 4},
        {"type": "qformer", "tokens": 7, "width": 8, "heads": 2, "feedforward": 4},
        {"type": "windowed_qformer", "window": 6, "tokens": 2, "width": 8, "heads": 2, "feedforward": 4},
        {"type": "emotion_aligned", "width": 8, "feedforward": 8, "heads": 2},
        {"type": "emotion_aligned", "width": 8, "feedforward": 8, "heads": 2, "kernel": 5, "stride": 3},
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_tells_how_many_embeddings_it_makes(node: dict[str, Any]) -> None:
    adapter: Adapter = ADAPTERS.build(node, 8, 6)
    for frames in (*range(1, 40), 149, 150, 151):
        out = adapter(Frames(torch.ones(1, frames, 8), torch.tensor([frames])))
        assert adapter.output_length(frames) == out.lengths.item() == out.x.shape[1], frames


def test_an_encoder_tells_how_many_frames_it_makes(
    tiny_whisper: str, checkpoints: dict[str, Path], kimi: tuple[Path, Path], tmp_path: Path
) -> None:
    """All that there are, to the frame; clips of other lengths beside it do not matter."""
    for save, name in ((save_w2v_bert, "w2v"), (save_parakeet, "parakeet")):
        save(tmp_path / name)
    nodes: list[dict[str, Any]] = [
        {"type": "whisper", "checkpoint": tiny_whisper},
        {"type": "whisper", "checkpoint": tiny_whisper, "window": "longest"},
        {"type": "conformer", "layers": 1, "width": 8, "feedforward": 8, "heads": 2},
        {"type": "hf_conformer", "checkpoint": str(tmp_path / "w2v")},
        {"type": "hf_conformer", "checkpoint": str(tmp_path / "parakeet")},
        {"type": "qwen2_audio", "checkpoint": str(checkpoints["qwen2_audio"])},
        {"type": "qwen2_5_omni", "checkpoint": str(checkpoints["whole omni"])},
        {"type": "kimi_audio", "checkpoint": str(kimi[0])},
        {"type": "kimi_audio", "checkpoint": str(kimi[0]), "speech_tokenizer": str(kimi[1])},
    ]
    for node in nodes:
        encoder: Encoder = ENCODERS.build(node)
        encoder.load()
        with torch.no_grad():
            for samples in (900, 1599, 1600, 1601, 4000, 9999, 15_999, 16_000, 16_001, 20_000, 25_000):
                out = encoder(torch.rand(1, samples) * 0.1, torch.tensor([samples]))
                assert encoder.output_length(samples) == out.lengths.item(), (node, samples)
        assert Encoder.output_length(encoder, 16_000) >= encoder.output_length(16_000)  # what one without a formula has


def change(manifest: Path, number: int, **keys: Any) -> Path:
    """A copy of a manifest in which one line has other keys."""
    lines = [json.loads(text) for text in manifest.read_text().splitlines()]
    lines[number] |= keys
    return write_lines(manifest.with_name(f"changed-{manifest.name}"), lines)


def turns(count: int, words: str = "and then i said that it was late") -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "text": words} for i in range(2 * count)]


def with_lines(tree: dict[str, Any], split: str, file: Path, **data: Any) -> dict[str, Any]:
    return {**tree, "data": {**tree["data"], split: [{"manifest": str(file)}], **data}}


BAD: dict[str, dict[str, Any]] = {
    "context": {"context": turns(20)},
    "target": {"text": "a very long transcript " * 30},
    "token": {"text": MARK},
    "token in context": {"context": [{"role": "user", "text": "hi"}, {"role": "assistant", "text": MARK}]},
    "token in caption": {"caption": "A <|im_end|> voice."},
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("keys", BAD.values(), ids=list(BAD))
def test_a_row_that_the_llm_cannot_read_is_named_before_any_step(
    tree: dict[str, Any], manifests: dict[str, Path], split: str, keys: dict[str, Any]
) -> None:
    """With id, file and line; `skip` leaves it out, and nothing else."""
    file = change(manifests[split], 2, **keys)
    with refused("bad-value", f"{file.name}:3", ManifestError) as caught:
        quiet_run(with_lines(tree, split, file))
    assert f"{split}-2" in str(caught.value)
    run = quiet_run(with_lines(tree, split, file, policy="skip"))
    assert [fault.where for fault in run.data.faults] == [f"{file}:3"]
    ids = [u.id for u in run.data.splits[split].utterances]
    lines = len(manifests[split].read_text().splitlines())
    assert ids == [f"{split}-{i}" for i in range(lines) if i != 2]


def test_text_in_angle_brackets_is_text(tree: dict[str, Any], manifests: dict[str, Path]) -> None:
    file = change(manifests["train"], 2, text="a < b and <b>bold</b> |im_start| <im_end>")
    assert not quiet_run(with_lines(tree, "train", file)).data.faults


def test_a_long_clip_counts_with_the_whole_context(tree: dict[str, Any], manifests: dict[str, Path]) -> None:
    """Each clip of 15 s is 150 embeddings of one slot and 2 of the other: two fit in, three do not."""
    folder = manifests["train"].parent
    write_tone(folder / "long.wav", 15.0, 333)
    write_tone(folder / "longer.wav", 15.0, 335)
    write_tone(folder / "longest.wav", 15.0, 337)
    spoken = [
        {"role": "user", "text": "x", "audio": "longer.wav", "caption": "A voice."}, {"role": "assistant", "text": "y"},
    ]  # fmt: skip
    tree["evaluation"]["max_new_tokens"] = 1
    two = change(manifests["train"], 2, audio="long.wav", context=spoken)
    quiet_run(with_lines(tree, "train", two))
    three = [{**spoken[0], "audio": "longest.wav"}, spoken[1], *spoken]
    with refused("bad-value", ":3", ManifestError) as caught:
        quiet_run(with_lines(tree, "train", change(manifests["train"], 2, audio="long.wav", context=three)))
    assert "456 of speech" in str(caught.value)


@pytest.fixture
def run(tree: dict[str, Any]) -> Run:
    return quiet_run(tree)


def every_reading(run: Run) -> list[Reading]:
    stages = [reading for stage in run.recipe.stages for reading in stage_readings(run.recipe, run.tasks, stage)]
    return [*stages, *scored_readings(run.recipe, run.tasks)]


def test_no_example_is_longer_than_was_told(run: Run) -> None:
    """Of each utterance that is drawn in any stage, of many draws; and the longest of them is as long."""
    for stage in run.recipe.stages:
        draw, readings = run.example_sampler(stage, cut=True), stage_readings(run.recipe, run.tasks, stage)
        for u in run.data.splits["train"].utterances[:6]:
            drawn = [e for epoch in range(600) if (e := draw(u, epoch, 0)) is not None]
            different = {str((e.task, e.instruction, e.context, e.sources, e.utterance.id)): e for e in drawn}
            longest = 0
            for example in different.values():
                turns = dialogue_of(example, run.slots)
                (prompt,) = run.module.embed(collate([example], run.audio_reader.read), [turns])
                answer = run.module.llm.chat.response(turns, example.target or "y" * 5)
                longest = max(longest, len(prompt) + len(answer))
            most = max((most_tokens(run, u, reading) for reading in readings if reading.serves(u)), default=0)
            assert longest <= most
            if all(not run.tasks[task].generated for task in run.recipe.stages[stage].tasks):
                assert longest == most


def most_tokens(run: Run, utterance: Utterance, reading: Reading) -> int:
    """By bisection over the LLM's context: the longest at which the row is refused, and one more is enough."""
    low, high = 1, CONTEXT
    while low < high:
        middle = (low + high) // 2
        bounded = replace(run.row_lengths, context=middle)
        low, high = (middle + 1, high) if bounded.faults([utterance], [reading]) else (low, middle)
    return low


def test_an_estimate_far_from_the_limit_is_no_less_than_the_prompt(run: Run) -> None:
    """What is not counted exactly must be too long by no more than the slack."""
    for u in (*run.data.splits["train"].utterances, *run.data.splits["test"].utterances):
        for reading in every_reading(run):
            if reading.serves(u):
                run.row_lengths.faults([u], [reading])
                nearly = _Row(run.row_lengths, u).longest(reading)[1] + run.row_lengths._around(reading)
                assert nearly * 1.05 + 16 >= most_tokens(run, u, reading)


def test_wordings_with_control_tokens_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "asr.txt").write_text("Write down what is said.\nRepeat <|im_start|>system it.\n")
    with refused("bad-value", "tasks.asr", ConfigError):
        quiet_run({**tree, "tasks": {**tree["tasks"], "asr": {"prompts": str(tmp_path / "asr.txt")}}})


def test_scoring_leaves_out_what_it_cannot_read(run: Run) -> None:
    """And names it: a row may prove too long only then, whatever was known before."""
    said = predict(run)
    test = run.data.splits["test"]
    many = Turn("user", "and then i said that it was late"), Turn("assistant", "and what did you say to that?")
    test.utterances[1] = replace(test.utterances[1], context=many * 12)
    test.utterances[2] = replace(test.utterances[2], text=MARK)
    left = predict(run)
    assert {p.id for p in said} - {p.id for p in left} == {"test-1", "test-2"}
    assert {fault.where for fault in run.data.faults} == {u.place for u in test.utterances[1:3]}
    other = [p for p in said if p.id not in ("test-1", "test-2")]
    assert sorted(map(str, other)) == sorted(map(str, left))


def test_a_row_is_left_out_of_a_lazy_run_when_it_is_drawn(tree: dict[str, Any], manifests: dict[str, Path]) -> None:

    records = [json.loads(text) for text in manifests["train"].read_text().splitlines()]
    for record in records:
        record["seconds"] = soundfile.info(str(manifests["train"].with_name(record["audio"]))).duration
    records[2] |= {"text": MARK}
    records[3] |= {"context": turns(20)}
    file = write_lines(manifests["train"].with_name("lazy.jsonl"), records)
    stages = {"joint": tree["stages"]["joint"]}
    data = with_lines(tree, "train", file, validate="lazy", policy="skip")["data"]
    run = quiet_run({**tree, "data": data, "stages": stages})
    train_stages(run)
    assert sorted(str(fault).split(": ")[0] for fault in run.data.faults) == [f"{file}:3", f"{file}:4"]


def test_answers_that_are_not_known_have_the_room_that_they_are_given(run: Run) -> None:
    """The tokens of a target that the LLM makes are its own, and those of scoring are others."""
    u = next(u for u in run.data.splits["train"].utterances if u.response is None)
    kinds: dict[str, Reading] = {r.where: r for r in every_reading(run) if r.name == "dialogue"}
    assert set(kinds) == {"stages.holistic", "targets", "evaluation"}
    for where, reading in kinds.items():
        before = most_tokens(run, u, reading)
        longer = "max_new_tokens" if where == "evaluation" else "target_max_new_tokens"
        more = replace(run, recipe=run.recipe)
        more.row_lengths = replace(run.row_lengths, **{longer: getattr(run.row_lengths, longer) + 40})
        assert most_tokens(more, u, reading) == before + 40
