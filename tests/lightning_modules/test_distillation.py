"""Distillation in a stage: KL from the frozen LLM that reads the text, by hand; once; with steps in any shares."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.errors import refused
from tests.helpers.runs import quiet_run
from torch import Tensor

from sottovoce.config import recipe as recipes
from sottovoce.data.examples import Batch, collate
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.run import Run
from sottovoce.llms import CausalLLM
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.spoken_prompt import dialogue_of

Tree = dict[str, Any]
WHOLE = {"top_k": 10**6, "temperature": 2}


def one_stage(tree: Tree, **changes: Any) -> Tree:
    joint = {**tree["stages"]["joint"], "warmup_steps": 0, "epochs": 1, **changes}
    return {**tree, "name": "taught", "stages": {"joint": joint}}


def started(tree: Tree, **changes: Any) -> Run:
    run = quiet_run(one_stage(tree, **changes))
    run.module.start_stage("joint", 10)
    run.module.eval()
    return run


def batch_of(run: Run, rows: slice = slice(4)) -> Batch:
    drawn = [run.example_sampler("joint", cut=True)(u, 0, 0) for u in run.data.splits["train"].utterances[rows]]
    return collate([run.targets.complete(example) for example in drawn if example], run.audio_reader.read)


def log_probs(run: Run, prompt: Tensor, response: list[int]) -> Tensor:
    """(tokens, vocabulary), by transformers' plain forward."""
    llm = run.module.llm
    reply = llm.model.get_input_embeddings()(torch.tensor(response))
    logits = llm.model(inputs_embeds=torch.cat([prompt, reply])[None]).logits[0]
    return (logits[len(prompt) - 1 : -1].double() / 2).log_softmax(-1)


def test_it_is_the_divergence_from_the_llm_that_reads_the_text(tree: Tree) -> None:
    run = started(tree, distill=WHOLE)
    module, batch = run.module, batch_of(run)
    chat, by_hand = module.llm.chat, 0.0
    with torch.no_grad():
        for example in batch.examples:
            response = chat.response(dialogue_of(example, module.slots), example.target or "")
            heard = module.embed(batch, [dialogue_of(example, module.slots)])[0]
            read = module.llm.embed(chat.prompt(teacher_dialogue(example, module.slots)), {})
            q, p = log_probs(run, heard, response), log_probs(run, read, response)
            by_hand += 4 * float(F.kl_div(q, p, reduction="sum", log_target=True))
        found = module.loss(batch).divergence
    assert found is not None and by_hand > 0
    assert found.item() == pytest.approx(by_hand, rel=1e-4)


def test_the_student_alone_gets_a_gradient(tree: Tree) -> None:
    run = started(tree, distill=WHOLE)
    found = run.module.train().loss(batch_of(run)).divergence
    assert found is not None
    found.backward()  # type: ignore[no-untyped-call]
    moved = {name for name, weight in run.module.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved and all(name.startswith("adapters.") for name in moved)


def test_the_teacher_reads_each_row_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    top_tokens = CausalLLM.top_tokens

    def counted(self: CausalLLM, prompts: Any, *rest: Any) -> Any:
        read.append(len(prompts))
        return top_tokens(self, prompts, *rest)

    monkeypatch.setattr(CausalLLM, "top_tokens", counted)
    run = started(tree, distill=WHOLE)
    first = run.module.loss(batch_of(run)).divergence
    again = started(tree, distill=WHOLE)  # another process, with the same cache
    second = again.module.loss(batch_of(again)).divergence
    assert read == [4] and first is not None and second is not None and torch.equal(first, second)
    started(tree, distill={**WHOLE, "top_k": 3}).module.loss(batch_of(run))
    assert read == [4, 4]


def test_rows_whose_text_is_not_known_have_no_teacher(tree: Tree) -> None:
    run = started(tree, distill=WHOLE)
    batch = batch_of(run)
    assert run.module.distiller is not None
    mute = [replace(e, utterance=replace(e.utterance, text=None)) for e in batch.examples]
    asked = run.module.distiller.teaching(mute, [[1]] * len(mute))
    assert list(asked.rows) == [None] * len(mute)


def test_an_llm_with_lora_teaches_as_it_was(tree: Tree) -> None:
    tuned = {**tree, "llm": {**tree["llm"], "tuning": {"method": "lora", "rank": 2, "targets": ["q_proj"]}}}
    run = started(tuned, distill=WHOLE, train=["linguistic", "llm"])
    batch, module = batch_of(run), run.module
    plain = module.loss(batch)
    for name, weight in module.llm.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    module.train()
    assert module.distiller is not None
    module.distiller = type(module.distiller)(module.llm, Path(tree["output_dir"]), module.slots, module.node.distill)  # type: ignore[arg-type]
    moved = module.loss(batch)  # with a new cache
    assert moved.total.item() != pytest.approx(plain.total.item())
    folders = [Path(tree["data"]["cache"]) / "teachers", Path(tree["output_dir"]) / "teachers"]
    files = [{f.name: f.read_bytes() for f in folder.rglob("*.safetensors")} for folder in folders]
    assert files[0] == files[1] and len(files[0]) == 4
    assert any(weight.requires_grad for weight in module.llm.parameters()) and module.llm.training


def test_steps_in_shares_are_the_same_steps(tree: Tree) -> None:
    """One batch of four, or four batches of one, whose responses differ in length."""
    tree["slots"]["paralinguistic"]["adapter"]["dropout"] = 0.0
    ends = []
    for name, size, together in (("whole", 4, 1), ("shares", 1, 4)):
        changes = {
            "distill": {"weight": 0.5, "top_k": 5},
            "batch_size": size,
            "accumulate_grad_batches": together,
            "eps": 1.0,
        }
        best = train_stages(quiet_run({**one_stage(tree, **changes), "name": name}))
        assert best is not None
        ends.append(read_trained(best))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=1e-5, atol=5e-6)  # biases have moved by 1e-3


def test_it_can_be_all_that_is_learned(tree: Tree) -> None:
    one = one_stage(tree, distill={"top_k": 5}, response_weight=0, epochs=3)
    best = train_stages(quiet_run(one))
    assert best is not None
    metrics = (next(best.parent.rglob("metrics.csv"))).read_text().splitlines()
    at = metrics[0].split(",").index("val/loss")
    losses = [float(line.split(",")[at]) for line in metrics[1:] if line.split(",")[at]]
    assert len(losses) == 3 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("code", "where", "changes"),
    [
        ("bad-value", "distill.top_k", {"distill": {"top_k": 0}}),
        ("bad-value", "distill.temperature", {"distill": {"temperature": 0}}),
        ("bad-value", "response_weight", {"distill": {"weight": 0}, "response_weight": 0}),
    ],
)
def test_what_cannot_be_is_refused(code: Any, where: str, changes: Tree, tree: Tree) -> None:
    with refused(code, f"stages.joint.{where}"):
        recipes.parse(one_stage(tree, **changes))


def test_an_llm_whose_own_weights_learn_cannot_teach(tree: Tree) -> None:
    tree["llm"] = {**tree["llm"], "tuning": {"method": "weights", "layers": "0", "targets": ["q_proj"]}}
    with refused("conflict", "stages.joint.distill"):
        recipes.parse(one_stage(tree, distill={}, train=["linguistic", "llm"]))
