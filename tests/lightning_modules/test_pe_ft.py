"""PE-FT from recipe to bundle: what is frozen keeps its bits, what learns is kept, the heads are not, runs resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import EMOTIONS, WORDS, write_lines, write_tone
from tests.helpers.errors import refused
from tests.helpers.runs import Fit, Write, quiet_run, run_killed
from torch.utils.checkpoint import checkpoint

from sottovoce.cli.main import main
from sottovoce.config import recipe as recipes
from sottovoce.data.examples import collate
from sottovoce.errors import BundleError, ConfigError
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.lightning_modules.curriculum import read_trained, train_stages
from sottovoce.lightning_modules.run import Run
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.spoken_prompt import dialogue_of

VALUES = {"gender": ["male", "female"], "emotion": list(EMOTIONS)}
HEAD = {"layer": 1, "categories": VALUES}
STAGE = {"tasks": {"dialogue": 1}, "train": ["llm"], "lr": 1e-2, "epochs": 2, "batch_size": 4}
LORA = {"method": "lora", "layers": "0", "rank": 2, "dropout": 0.1}


def write_pairs(folder: Path, split: str, count: int) -> Path:
    """Sentences whose right answer hangs on one attribute, each said with every value of it."""
    lines = []
    for i in range(count):
        category = list(VALUES)[i % 2]
        for value in VALUES[category]:
            name = f"{split}-{i}-{value}.wav"
            write_tone(folder / name, 0.4 + 0.1 * (i % 3), 100 + 60 * VALUES[category].index(value) + len(split))
            answers = {each: f"so you are {each}" for each in VALUES[category]}
            lines.append(
                {"id": name, "audio": name, "text": f"{WORDS[i % 4]} {split} {i}", "speaker": f"{split}-{value}",
                 "labels": {category: value}, "category": category, "topic": "things", "answers": answers,
                 "response": answers[value]}
            )  # fmt: skip
    return write_lines(folder / f"{split}.jsonl", lines)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("pairs")
    sizes = {"train": 4, "validation": 2, "test": 2}
    return {split: [{"manifest": str(write_pairs(folder, split, n))}] for split, n in sizes.items()}


@pytest.fixture
def tuned(write_recipe: Write, tree: dict[str, Any], pairs: dict[str, Any]) -> Write:
    """Write a recipe with one stage in which the LLM learns; `tuning` and `auxiliary_head` as said."""

    def write(tuning: dict[str, Any], head: dict[str, Any] | None = None, **changes: Any) -> str:
        return write_recipe(
            llm={**tree["llm"], "tuning": tuning},
            auxiliary_head=head,
            stages={"tune": STAGE},
            data={"cache": tree["data"]["cache"], **pairs},
            evaluation={"batch_size": 5, "max_new_tokens": 6, "slots": ["both"]},
            **changes,
        )

    return write


def fitted(config: str) -> Path:
    """The folder of a run that was trained."""
    assert main(["fit", "--config", config]) == 0
    return recipes.load(config).folder


def opened(config: str) -> Run:
    run = quiet_run(recipes.load(config))
    run.module.start_stage("tune", 10)
    return run


@pytest.mark.parametrize("method", ["lora", "weights"])
@pytest.mark.parametrize("head", [None, HEAD])
def test_only_what_was_named_has_changed(tuned: Write, tiny_llm: str, method: str, head: dict[str, Any] | None) -> None:
    """Adapters, encoder and every other weight of the LLM have the bits that they had; the named ones have moved."""
    config = tuned({**LORA, "method": method}, head)
    before = quiet_run(recipes.load(config)).module
    adapters = {name: value.clone() for name, value in before.adapters.state_dict().items()}
    bundle = fitted(config) / "bundle"
    module = read_bundle(bundle)
    assert all(torch.equal(value, adapters[name]) for name, value in module.adapters.state_dict().items())
    base = load_file(Path(tiny_llm) / "model.safetensors")
    now = {n.replace(".base_layer.", "."): v for n, v in module.llm.model.state_dict().items() if ".lora_" not in n}
    moved = {name for name, value in base.items() if not torch.equal(value, now[name])}
    linear = {n for n in base if n.startswith("model.layers.0.") and "proj" in n}
    assert moved == (linear if method == "weights" else set())
    kept = load_file(bundle / "trained.safetensors")
    assert {name.split(".")[0] for name in kept} == {"adapters", "llm"}  # and no head
    for name in module.llm.trainable_names:
        assert "layers.0." in name
        if ".lora_B." in name:
            assert kept[f"llm.{name}"].any(), f"{name} has not moved"


def test_a_bundle_answers_as_the_run_did(tuned: Write) -> None:
    config = tuned(LORA, HEAD)
    folder, run = fitted(config), opened(config)
    module = read_bundle(folder / "bundle")
    run.module.load_trained(read_trained(folder / "stages" / "1-tune" / "best.ckpt"), "best")
    batch = collate([run.targets.complete(e) for e in _drawn(run)], run.audio_reader.read)
    run.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module.loss(batch).per_row, run.module.loss(batch).per_row)


def _drawn(run: Run) -> list[Any]:
    drawing = run.example_sampler("tune", cut=False)
    return [drawing(u, 0, 0) for u in run.data.splits["train"].utterances[:5]]


@pytest.mark.parametrize("head", [None, HEAD])
def test_the_loss_of_a_row_does_not_depend_on_its_batch(tuned: Write, head: dict[str, Any] | None) -> None:
    run = opened(tuned({**LORA, "layers": "all"}, head))
    with torch.no_grad():
        for name, weight in run.module.llm.named_parameters():
            if name in run.module.llm.trainable_names:
                weight.normal_(std=0.3)
    run.module.eval()
    examples = _drawn(run)
    with torch.no_grad():
        together = run.module.loss(collate(examples, run.audio_reader.read))
        alone = [run.module.loss(collate([e], run.audio_reader.read)) for e in examples]
    torch.testing.assert_close(together.per_row, torch.cat([a.per_row for a in alone]), rtol=1e-4, atol=1e-4)
    if head:
        pooled = torch.cat([a.pooled for a in alone if a.pooled is not None])
        torch.testing.assert_close(together.pooled, pooled, rtol=1e-4, atol=1e-4)


def test_the_head_looks_at_the_speech_alone(tuned: Write) -> None:
    """Its means are those of the layer's output at the speech's positions, computed by transformers row by row."""
    run = opened(tuned(LORA, {**HEAD, "layer": 0}))  # of the last layer, transformers shows what its final norm makes
    module, examples = run.module.eval(), _drawn(run)
    batch = collate(examples, run.audio_reader.read)
    with torch.no_grad():
        pooled = module.loss(batch).pooled
        for row, example in enumerate(examples):
            silent = replace(example, sources=dict.fromkeys(example.sources, "none"))
            words, heard = (_prompt(module, collate([e], run.audio_reader.read), e) for e in (silent, example))
            states = module.llm.model(inputs_embeds=heard[None], output_hidden_states=True).hidden_states[1][0]
            starts = next(i for i, (a, b) in enumerate(zip(words, heard, strict=False)) if not torch.equal(a, b))
            length = len(heard) - len(words)
            speech = [starts + i for i in range(length) if i != 2]  # two soft tokens, a line break, the words
            assert pooled is not None
            scale = states[speech].abs().max()  # a number may be the small difference of large ones
            torch.testing.assert_close(pooled[row] / scale, states[speech].mean(0) / scale, rtol=0, atol=1e-4)


def _prompt(module: SpeechLLM, batch: Any, example: Any) -> torch.Tensor:
    return module.embed(batch, [dialogue_of(example, module.slots)])[0]


def _recomputing(layer: torch.nn.Module, x: torch.Tensor, call: Callable[..., Any], **knobs: Any) -> Any:
    return checkpoint(partial(call, layer, **knobs), x, use_reentrant=False)


def _of_head(module: SpeechLLM, out: Any, batch: Any) -> Any:
    truth = [(str(e.utterance.category), e.utterance.labels[str(e.utterance.category)]) for e in batch.examples]
    assert out.pooled is not None and module.auxiliary_head is not None
    return module.auxiliary_head.loss(out.pooled, truth)


@pytest.mark.parametrize("hooks_within", [False, True])
def test_recomputed_activations_give_the_same_gradients(
    tuned: Write, monkeypatch: pytest.MonkeyPatch, hooks_within: bool
) -> None:
    """Whether transformers recomputes a layer alone, as of late, or with the hooks on it, as before 5.21."""
    gradients = []
    for recompute in (False, True):
        tuning = {**LORA, "dropout": 0.0, "recompute": recompute and not hooks_within}
        run = opened(tuned(tuning, HEAD, name=f"re-{recompute}"))
        layer = type(run.module.llm.layers[0])
        if recompute and hooks_within:
            monkeypatch.setattr(layer, "__call__", partialmethod(_recomputing, call=layer.__call__))
        torch.manual_seed(5)
        for weight in run.module.trainable_parameters():
            torch.nn.init.normal_(weight, std=0.1)
        batch = collate(_drawn(run)[:4], run.audio_reader.read)
        out = run.module.loss(batch)
        (out.total + _of_head(run.module, out, batch).category).backward()
        gradients.append([w.grad.clone() for w in run.module.trainable_parameters() if w.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 4
    for kept, made in zip(*gradients, strict=True):
        torch.testing.assert_close(made, kept)


def test_a_training_step_adds_the_weighted_mean_of_the_heads(tuned: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Category and attribute, of the rows: 0.25 x (c + a) / rows beside the mean over response tokens."""
    run = opened(tuned({**LORA, "dropout": 0.0}, {**HEAD, "weight": 0.25}))
    module, alone = run.module, SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=False)
    trainer = SimpleNamespace(strategy=alone, world_size=1, global_rank=0, accumulate_grad_batches=1)
    monkeypatch.setattr(type(module), "trainer", trainer)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    batch = collate(_drawn(run), run.audio_reader.read)
    out = module.loss(batch)
    head = _of_head(module, out, batch)
    expected = out.total / out.tokens + 0.25 * (head.category + head.attribute) / len(batch.examples)
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_head_moves_the_layers_below_it(tuned: Write) -> None:
    """With a head of weight 1000 against one of weight 0, the same draws end elsewhere; without rows, nowhere."""
    ends = {}
    for weight in (0.0, 1000.0):
        run = opened(tuned(LORA, {**HEAD, "weight": weight}, name=f"w{weight:g}"))
        head = run.recipe.auxiliary_head
        assert head and head.weight == weight
        train_stages(run)
        ends[weight] = {name: run.module.llm.get_parameter(name).clone() for name in run.module.llm.trainable_names}
    assert any(not torch.equal(ends[0.0][name], ends[1000.0][name]) for name in ends[0.0])


def test_a_killed_run_ends_in_the_same_weights(tuned: Write, tmp_path: Path) -> None:
    whole = fitted(tuned(LORA, HEAD, output_dir=str(tmp_path / "whole")))
    config = tuned(LORA, HEAD, output_dir=str(tmp_path / "killed"))
    run_killed(4, "fit", "--config", config)
    ours, theirs = (load_file(run / "bundle" / "trained.safetensors") for run in (whole, fitted(config)))
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_may_begin_from_a_bundle_whose_llm_was_frozen(tuned: Write, fit: Fit) -> None:
    bundle = fit(name="aligned") / "bundle"
    run = quiet_run(recipes.load(tuned(LORA, init_from=str(bundle))))
    kept = load_file(bundle / "trained.safetensors")
    ours = run.module.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in kept.items())
    with refused("mismatch", "bundle", BundleError):
        run.module.load_trained(kept, "bundle")  # as a result of this recipe it would lack what was tuned


@pytest.mark.parametrize(
    ("overrides", "code", "where"),
    [
        (["llm.tuning.layers=0-7"], "bad-value", "llm.tuning.layers"),
        (["llm.tuning.targets=[query]"], "unknown-name", "llm.tuning.targets"),
        (["llm.tuning.layers=auto", "llm.tuning.analysis=none.json"], "not-found", "llm.tuning.analysis"),
        (["auxiliary_head.layer=9"], "bad-value", "auxiliary_head.layer"),
    ],
)
def test_what_the_llm_does_not_have_is_refused(tuned: Write, overrides: list[str], code: Any, where: str) -> None:
    with refused(code, where, ConfigError):
        quiet_run(recipes.load(tuned(LORA, HEAD), overrides))


def test_auto_takes_what_the_analysis_found(tuned: Write, tmp_path: Path) -> None:
    found = {"layers": 2, "paralinguistic": [0, 0], "semantic": [1, 1], "rule": "as written here", "curves": {}}
    (tmp_path / "layers.json").write_text(json.dumps(found))
    config = tuned({**LORA, "layers": "auto", "analysis": str(tmp_path / "layers.json")})
    assert recipes.load(config).llm.tuning.layers == "0-1"
