"""CTC of a slot's embeddings in a stage: what it trains, alone and beside the response, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.errors import refused
from tests.helpers.runs import Write, quiet_run
from torch import Tensor

from sottovoce.config import recipe as recipes
from sottovoce.data.examples import Batch, collate
from sottovoce.errors import ConfigError
from sottovoce.lightning_modules.fit import fit
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms import CausalLLM

ALIGN: dict[str, Any] = {
    "tasks": {"asr": 1}, "ctc": {"linguistic": 0.5}, "response_weight": 0, "lr": 1e-2, "epochs": 2, "batch_size": 4,
}  # fmt: skip


@pytest.fixture
def tree(tree: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with a frame for each token of its short clips."""
    tree["slots"]["linguistic"]["adapter"]["stack"] = 1
    return tree


def started(tree: dict[str, Any], **changes: Any) -> Run:
    run = quiet_run({**tree, "stages": {"align": {**ALIGN, **changes}}})
    run.module.start_stage("align", 10)
    run.module.eval()
    return run


def batch_of(run: Run, rows: slice = slice(4)) -> Batch:
    drawn = [run.example_sampler("align", cut=True)(u, 0, 0) for u in run.data.splits["train"].utterances[rows]]
    return collate([run.targets.complete(example) for example in drawn if example], run.audio_reader.read)


def test_it_is_that_of_the_transcripts_in_the_slots_embeddings(tree: dict[str, Any]) -> None:
    run = started(tree)
    module, batch = run.module, batch_of(run)
    heard = {
        key.clip: x for key, x in module.speech_embeddings(batch, prompts(run, batch))[0].items()
        if key.slot == "linguistic"  # type: ignore[attr-defined]
    }  # fmt: skip
    texts = {e.utterance.audio: str(e.utterance.text) for e in batch.examples}
    ids = [module.llm.chat.ids_after_words(texts[clip]) for clip in heard]
    table = module.llm.model.get_input_embeddings().weight
    assert module.ctc_head is not None
    by_hand = module.ctc_head.loss(list(heard.values()), ids, table)
    found = module.loss(batch).ctc
    assert found is not None and found.tokens == by_hand.tokens > 0
    torch.testing.assert_close(found.total, 0.5 * by_hand.total)


def prompts(run: Run, batch: Batch) -> Any:
    from sottovoce.training.spoken_prompt import dialogue_of

    return [run.module.llm.chat.prompt(dialogue_of(e, run.module.slots)) for e in batch.examples]


def gradients(run: Run, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Of the loss of a training step."""
    alone = SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=False)
    trainer = SimpleNamespace(strategy=alone, world_size=1, global_rank=0, accumulate_grad_batches=1)
    monkeypatch.setattr(SpeechLLM, "trainer", trainer)
    monkeypatch.setattr(run.module, "log", lambda *_, **__: None)
    run.module.train()  # what is drawn there for dropout depends on the step alone
    run.module.zero_grad()
    run.module.training_step(batch, 0).backward()
    return {n: w.grad.clone() for n, w in run.module.named_parameters() if w.grad is not None}


def test_its_gradient_adds_to_that_of_the_response(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    both, ctc, response = (
        gradients(run, batch_of(run), monkeypatch)
        for run in (started(tree, response_weight=2), started(tree), started(tree, ctc=None, response_weight=2))
    )
    for name in response:
        torch.testing.assert_close(both[name], ctc[name] + response[name], rtol=1e-3, atol=1e-6)
    still = [n for n, g in ctc.items() if n.startswith(("adapters.linguistic", "ctc_head")) and not g.any()]
    assert not still
    assert not any(ctc[name].any() for name in ctc if name.startswith("adapters.paralinguistic"))


@pytest.mark.parametrize("weight", [0, 2])
def test_a_step_adds_them_up_and_validation_tells_what_chooses(
    weight: int, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is divided by the tokens of the responses; the best checkpoint is that of the response, if it trains."""
    run, logged = started(tree, response_weight=weight), dict[str, float]()
    batch = batch_of(run)
    gradients(run, batch, monkeypatch)
    monkeypatch.setattr(run.module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    run.module.eval()
    with torch.no_grad():
        out = run.module.loss(batch)
    assert out.ctc is not None and out.ctc.size > 0
    whole = weight * out.total + out.ctc.total + out.ctc.size
    torch.testing.assert_close(run.module.training_step(batch, 0), whole / out.tokens)
    total, tokens = out[:2] if weight else out.ctc[:2]
    assert logged["train/loss"] == pytest.approx(float(total) / tokens, rel=1e-5)
    assert logged["train/ctc"] == pytest.approx(float(out.ctc.total) / out.ctc.tokens, rel=1e-5)
    run.module.on_validation_epoch_start()
    run.module.validation_step(batch, 0)
    run.module.on_validation_epoch_end()
    assert logged["val/loss"] == pytest.approx(float(total) / tokens, rel=1e-5)


def test_without_a_response_the_llm_is_not_run(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("the LLM was run")

    run = started(tree)
    monkeypatch.setattr(CausalLLM, "loss", unwanted)
    assert gradients(run, batch_of(run), monkeypatch)


def test_alone_it_runs_no_adapter_but_its_own(tree: dict[str, Any]) -> None:
    run, ran = started(tree), list[str]()
    for slot, adapter in run.module.adapters.items():
        adapter.register_forward_hook(lambda *_, slot=slot: ran.append(slot))
    run.module.loss(batch_of(run))
    assert ran == ["linguistic"]


def test_a_stage_of_it_begins_the_curriculum_and_leaves_no_head(write_recipe: Write, tmp_path: Path) -> None:
    """The best checkpoint of such a stage is that of the lowest CTC; the next stage has none."""
    joint = {"tasks": {"asr": 1}, "lr": 1e-3, "epochs": 1, "batch_size": 4}
    fit(write_recipe(stages={"align": {**ALIGN, "epochs": 4}, "joint": joint}))
    (folder,) = tmp_path.glob("runs/*")
    (metrics,) = (folder / "stages" / "1-align").rglob("metrics.csv")
    logged = metrics.read_text().splitlines()
    assert {"train/ctc", "val/loss"} <= set(logged[0].split(","))
    assert not any(name.startswith("ctc_head") for name in load_file(folder / "bundle" / "trained.safetensors"))


@pytest.mark.parametrize(
    ("changes", "where", "code"),
    [
        ({"ctc": {"linguistics": 1}}, "stages.align.ctc", "unknown-name"),
        ({"ctc": {"paralinguistic": 1}}, "stages.align.ctc.paralinguistic", "conflict"),
        ({"ctc": None}, "stages.align.response_weight", "bad-value"),
        ({"ctc": {"linguistic": 0}}, "stages.align.response_weight", "bad-value"),
    ],
)
def test_what_cannot_train_is_refused(changes: dict[str, Any], where: str, code: Any, tree: dict[str, Any]) -> None:
    with refused(code, where, ConfigError):
        recipes.parse({**tree, "stages": {"align": {**ALIGN, **changes}}})


def test_a_table_in_shards_is_refused(tree: dict[str, Any]) -> None:
    zero = {"accelerator": "cpu", "devices": 2, "strategy": "deepspeed_stage_3", "precision": "32-true"}
    with refused("conflict", "trainer.strategy", ConfigError):
        quiet_run({**tree, "stages": {"align": ALIGN}, "trainer": zero})


def test_a_stack_too_large_for_every_transcript_is_refused(tree: dict[str, Any], write_recipe: Write) -> None:
    tree["slots"]["linguistic"]["adapter"]["stack"] = 50
    with refused("conflict", "stages.align.ctc.linguistic", ConfigError):
        fit(write_recipe(slots=tree["slots"], stages={"align": ALIGN}))
