"""The composition: what trains, what stays, and that a result never depends on batch mates."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run

from sottovoce.config.recipe import Recipe, parse
from sottovoce.data.examples import Example, collate
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.audio_reader import AudioReader
from sottovoce.training.spoken_prompt import dialogue_of

SOURCES = [("speech", "speech"), ("speech", "none"), ("text", "speech"), ("none", "speech"), ("text", "text")]


@pytest.fixture
def run(recipe: Recipe) -> Run:
    run = quiet_run(recipe)
    run.module.start_stage("joint", 10)
    return run


def drawn(run: Run, sources: tuple[str, str] = ("speech", "speech"), count: int = 5) -> list[Example]:
    drawing = run.example_sampler("joint", cut=True)
    examples = [drawing(u, 0, 0) for u in run.data.splits["train"].utterances[:count]]
    filled = dict(zip(run.module.slots, sources, strict=True))
    return [replace(e, sources=filled) for e in examples if e is not None]


@pytest.mark.parametrize("sources", SOURCES)
def test_the_loss_of_a_row_does_not_depend_on_its_batch(run: Run, sources: tuple[str, str]) -> None:
    examples = drawn(run, sources)
    run.module.eval()
    with torch.no_grad():
        together = run.module.loss(collate(examples, run.audio_reader.read)).per_row
        backwards = run.module.loss(collate(examples[::-1], run.audio_reader.read)).per_row.flip(0)
        alone = torch.cat([run.module.loss(collate([e], run.audio_reader.read)).per_row for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sources", SOURCES)
def test_an_answer_does_not_depend_on_its_batch(run: Run, sources: tuple[str, str]) -> None:
    examples = drawn(run, sources)

    def ask(rows: list[Example]) -> list[str]:
        batch = collate(rows, run.audio_reader.read)
        return run.module.generate(batch, [dialogue_of(e, run.module.slots) for e in rows], 8)

    assert ask(examples) == [ask([example])[0] for example in examples]


def test_text_in_every_slot_is_the_plain_llm(run: Run) -> None:
    """The topline's loss equals Hugging Face's own on the same chat, written as text."""
    example = drawn(run, ("text", "text"))[2]
    batch = collate([example], run.audio_reader.read)
    assert not batch.clips
    turns = dialogue_of(example, run.module.slots)
    chat = [{"role": turn.role, "content": "".join(map(str, turn.pieces))} for turn in turns]
    llm = run.module.llm
    prompt = llm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = llm.tokenizer(f"{example.target}<|im_end|>", add_special_tokens=False)["input_ids"]
    ids, labels = torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])
    with torch.no_grad():
        plain = llm.model(input_ids=ids, labels=labels).loss
        ours = run.module.loss(batch)
    torch.testing.assert_close(ours.total / ours.tokens, plain, rtol=1e-5, atol=1e-5)


def test_cached_frames_and_waveforms_give_the_same_loss(run: Run, recipe: Recipe) -> None:
    examples = drawn(run)
    run.module.eval()
    live = AudioReader(run.module.encoder, None, 60.0)
    with torch.no_grad():
        cached = run.module.loss(collate(examples, run.audio_reader.read)).per_row
        heard = run.module.loss(collate(examples, live.read)).per_row
    torch.testing.assert_close(cached, heard, rtol=2e-3, atol=2e-3)  # the cache is float16


def test_whatever_can_train_is_owned(run: Run) -> None:
    trainable = {name for name, weight in run.module.named_parameters() if weight.requires_grad}
    assert trainable == {f"adapters.{name}" for name, _ in run.module.adapters.named_parameters()}


def test_frozen_parts_stay_in_eval(run: Run) -> None:
    run.module.train()
    assert run.module.adapters.training
    assert not any(m.training for m in [*run.module.llm.modules(), *run.module.encoder.modules()])


def test_a_row_trains_only_the_slots_it_names(run: Run) -> None:
    """ERR: the adapter that does not carry the task gets no gradient from the row, though its speech is heard."""
    run.module.train()
    for slot, other in (("linguistic", "paralinguistic"), ("paralinguistic", "linguistic")):
        run.module.zero_grad()
        examples = [replace(e, trains=frozenset({slot})) for e in drawn(run)]
        run.module.loss(collate(examples, run.audio_reader.read)).total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.module.adapters[slot].parameters())
        assert all(p.grad is None for p in run.module.adapters[other].parameters())


def test_a_frozen_slot_is_still_heard_and_has_no_dropout(run: Run) -> None:
    run.module.train()
    frozen = [replace(e, trains=frozenset({"linguistic"})) for e in drawn(run)]
    first, second = (run.module.loss(collate(frozen, run.audio_reader.read)).total for _ in range(2))
    assert first == second  # the paralinguistic adapter has dropout 0.1, the linguistic one has none
    silent = [replace(e, sources={"paralinguistic": "none", "linguistic": "speech"}) for e in frozen]
    assert run.module.loss(collate(silent, run.audio_reader.read)).total != first


def test_a_clip_goes_through_an_adapter_once_whatever_asks_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = drawn(run, count=1)
    others = [replace(example, instruction="Repeat."), replace(example, trains=frozenset())]
    batch = collate([example, *others], run.audio_reader.read)
    seen: list[int] = []
    adapter = run.module.adapters["linguistic"]
    forward = adapter.forward
    monkeypatch.setattr(adapter, "forward", lambda frames: seen.append(len(frames.x)) or forward(frames))  # type: ignore
    run.module.train()
    run.module.loss(batch)
    assert len(batch.clips) == 1 and seen == [1, 1]  # once learning, once frozen


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_adapters_load_strictly(run: Run, damage: str) -> None:
    weights = {f"adapters.{k}": v.clone() for k, v in run.module.adapters.state_dict().items()}
    value = weights.pop("adapters.linguistic.mlp.0.weight")
    if damage == "unknown":
        weights |= {"adapters.linguistic.mlp.0.wait": value}
    elif damage == "shape":
        weights |= {"adapters.linguistic.mlp.0.weight": value[:, :-1]}
    with refused("mismatch", "here.ckpt"):
        run.module.load_trained(weights, "here.ckpt")


def test_configure_model_is_idempotent(run: Run) -> None:
    llm, encoder = run.module.llm.model, run.module.encoder
    run.module.configure_model()
    assert run.module.llm.model is llm and run.module.encoder is encoder


def test_a_checkpoint_holds_the_adapters_and_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how many utterances a step has, of all processes, since a place in the data is counted in steps."""
    monkeypatch.setattr(SpeechLLM, "trainer", SimpleNamespace(world_size=2, accumulate_grad_batches=3))
    checkpoint: dict[str, Any] = {"state_dict": run.module.state_dict()}
    run.module.on_save_checkpoint(checkpoint)
    assert parse(checkpoint["recipe"]) == run.recipe
    assert checkpoint["batch_size"] == 2 * 3 * 4
    assert set(checkpoint["state_dict"]) == {f"adapters.{k}" for k in run.module.adapters.state_dict()}
