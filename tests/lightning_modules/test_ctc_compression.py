"""CTC compression: frames read as the LLM's own tokens, without blanks; what a run keeps of it, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run
from torch import Tensor

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import collate
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.llms import ctc_head
from sottovoce.llms.ctc_head import CTCHead
from sottovoce.training.speech_slots import adapted, read_tokens
from sottovoce.training.spoken_prompt import dialogue_of

ALIGN: dict[str, Any] = {
    "tasks": {"asr": 1}, "ctc": {"linguistic": 1}, "response_weight": 0, "lr": 1e-2, "epochs": 1, "batch_size": 4,
}  # fmt: skip
JOINT: dict[str, Any] = {"tasks": {"asr": 1, "emotion": 1}, "lr": 1e-3, "epochs": 1, "batch_size": 4}


@pytest.fixture
def head() -> CTCHead:
    torch.manual_seed(0)
    return CTCHead(16)


@pytest.fixture
def table() -> Tensor:
    return torch.randn(12, 16, generator=torch.Generator().manual_seed(1))


def frames_of(head: CTCHead, table: Tensor, classes: str) -> Tensor:
    """A frame for each character: `_` is the blank, a digit a token; not quite what they are."""
    rows = [head.blank.detach() if c == "_" else table[int(c)] for c in classes]
    return torch.stack(rows) + 0.05 * torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("said", "kept"),
    [("__3_3__", "33"), ("333", "3"), ("_1223__34_", "12334"), ("7", "7"), ("", ""), ("4_______5", "45")],
)
def test_blanks_are_left_out_and_repeats_become_one(head: CTCHead, table: Tensor, said: str, kept: str) -> None:
    speech = frames_of(head, table, said) if said else torch.zeros(0, 16)
    read = head.read(Frames.pad([speech, frames_of(head, table, "5_5")]), table)
    assert read.lengths.tolist() == [len(kept), 2]
    wanted = table[[int(c) for c in kept]]
    torch.testing.assert_close(read.rows()[0], wanted)
    assert not read.x[0, len(kept) :].any()


def test_a_row_of_blanks_keeps_the_frame_that_is_so_least(head: CTCHead) -> None:
    table, blank = torch.eye(12, 16), torch.eye(16)[15]
    head.blank.data = blank
    for row, token in (([blank, blank + 0.5 * table[2], blank], 2), ([blank + 0.5 * table[4]] * 3, 4)):
        read = head.read(Frames.pad([torch.stack(row)]), table)
        assert read.lengths.tolist() == [1]
        assert read.x[0, 0].argmax() == token


def test_a_row_is_read_the_same_in_any_batch(head: CTCHead, table: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.randn(frames, 16, generator=torch.Generator().manual_seed(frames)) for frames in (3, 9, 1, 6)]
    together = head.read(Frames.pad(rows), table)
    monkeypatch.setattr(ctc_head, "READ_FRAMES", 2)
    for row, read in zip(rows, together.rows(), strict=True):
        torch.testing.assert_close(head.read(Frames.pad([row]), table).x[0], read)


def test_the_adapter_learns_from_what_is_read_and_the_head_does_not(head: CTCHead, table: Tensor) -> None:
    head.log_scale.data.fill_(0.5)  # tokens that are not sure
    speech = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    read = head.read(Frames(speech, torch.tensor([4])), table).x
    read[..., 0].sum().backward()
    assert speech.grad is not None and speech.grad.abs().max() > 1e-6
    assert head.blank.grad is None and head.log_scale.grad is None


def test_a_blank_parts_two_of_the_same_token(head: CTCHead) -> None:
    """Though the blank's second choice is that token, too."""
    table, head.blank.data = torch.eye(12, 16), torch.eye(16)[15]
    blank = head.blank.detach() + 0.5 * table[3]
    read = head.read(Frames.pad([torch.stack([table[3], blank, table[3]])]), table)
    assert torch.equal(read.rows()[0], table[[3, 3]])


def test_some_tokens_are_never_read(head: CTCHead, table: Tensor) -> None:
    speech = frames_of(head, table, "3_5")
    read = head.read(Frames.pad([speech]), table, never=[5]).rows()[0]
    assert torch.equal(read[0], table[3]) and not (read == table[5]).all(1).any()


@pytest.fixture
def compressed(tree: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with a frame for each token of its short clips, which CTC compresses."""
    tree["slots"]["linguistic"]["adapter"]["stack"] = 1
    tree["slots"]["linguistic"]["ctc_compression"] = True
    return {**tree, "stages": {"align": ALIGN, "joint": JOINT}}


def test_the_llm_reads_what_the_head_read(compressed: dict[str, Any]) -> None:
    """In training and scoring alike; CTC itself is of all frames."""
    run = quiet_run(compressed)
    run.module.start_stage("align", 10)
    module, draw = run.module.eval(), run.example_sampler("align", cut=True)
    drawn = [e for u in run.data.splits["train"].utterances[:4] if (e := draw(u, 0, 0))]
    batch = collate([run.targets.complete(e) for e in drawn], run.audio_reader.read)
    prompts = [module.llm.chat.prompt(dialogue_of(e, module.slots)) for e in batch.examples]
    raw_of, speech = adapted(module, batch, prompts)[0], module.speech_embeddings(batch, prompts)[0]
    assert module.ctc_head is not None and raw_of.keys() == speech.keys()
    for key, embedding in speech.items():
        raw = raw_of[key]
        if key.slot == "linguistic":  # type: ignore[attr-defined]
            raw = module.ctc_head.read(Frames.pad([raw]), module.llm.token_table()).x[0]
        torch.testing.assert_close(embedding, raw)
    table = module.llm.token_table()
    heard = {key.clip: x for key, x in raw_of.items() if key.slot == "linguistic"}  # type: ignore[attr-defined]
    texts = {e.utterance.audio: str(e.utterance.text) for e in batch.examples}
    ids = [module.llm.chat.ids_after_words(texts[clip]) for clip in heard]
    found = module.loss(batch).ctc
    assert found is not None
    torch.testing.assert_close(found.total, module.ctc_head.loss(list(heard.values()), ids, table).total)


def test_a_bundle_keeps_the_head(compressed: dict[str, Any], fit: Fit, tmp_path: Path) -> None:
    """It answers as the run did, and is no graph."""
    evaluation = {"max_new_tokens": 2, "slots": ["linguistic"], "limit": 3}
    folder = fit(slots=compressed["slots"], stages=compressed["stages"], evaluation=evaluation)
    bundle = folder / "bundle"
    kept = load_file(bundle / "trained.safetensors")
    assert {"ctc_head.blank", "ctc_head.log_scale"} <= kept.keys()
    module = read_bundle(bundle)
    assert module.ctc_head is not None
    assert torch.equal(module.ctc_head.blank, kept["ctc_head.blank"])
    before = (folder / "evaluation" / "predictions.jsonl").read_text()
    shutil.rmtree(folder / "evaluation")
    assert main(["evaluate", str(folder)]) == 0
    (again,) = folder.rglob("predictions.jsonl")
    assert again.read_text() == before
    assert main(["export", str(bundle), "--out", str(tmp_path / "graph"), "--format", "pt2"]) == 2


def test_borders_of_turns_are_never_read(compressed: dict[str, Any]) -> None:
    """Whatever is heard: speech must not end the turn that it is heard in."""
    module = quiet_run(compressed).module.eval()
    table, border = module.llm.token_table(), sorted(module.llm.chat.control_ids)
    assert module.ctc_head is not None and module.llm.chat.stop_ids <= {*border}
    heard = Frames.pad([table[border] + 0.0])
    assert torch.equal(module.ctc_head.read(heard, table).x[0], table[border])
    read = read_tokens(module, "linguistic", heard).x[0]
    assert len(read) and not any(torch.equal(one, table[two]) for one in read for two in border)


def test_a_run_may_begin_from_a_bundle_without_a_head(
    compressed: dict[str, Any], fit: Fit, write_recipe: Write
) -> None:
    """Where it teaches one of its own; else the bundle is refused."""
    own = compressed["slots"]["linguistic"]
    plain = {**compressed["slots"], "linguistic": {**own, "ctc_compression": False}}
    evaluation = {"max_new_tokens": 2, "slots": ["linguistic"], "limit": 1}
    bundle = str(fit(slots=plain, stages={"joint": JOINT}, evaluation=evaluation) / "bundle")
    later = {"slots": compressed["slots"], "init_from": bundle, "evaluation": evaluation}
    fit(name="taught", stages={"align": ALIGN}, **later)
    assert main(["fit", "--config", write_recipe(name="untaught", stages={"joint": JOINT}, **later)]) == 2


@pytest.mark.parametrize("stages", [{"joint": JOINT}, {"align": {**ALIGN, "ctc": {"linguistic": 0}}, "joint": JOINT}])
def test_a_head_that_nothing_teaches_is_refused(compressed: dict[str, Any], stages: dict[str, Any]) -> None:
    with refused("conflict", "slots.linguistic.ctc_compression", ConfigError):
        recipes.parse({**compressed, "stages": stages})
