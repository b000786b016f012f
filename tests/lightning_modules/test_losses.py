"""Losses of training and validation: means over response tokens, of all rows and batches together."""

from types import SimpleNamespace

import pytest
import torch
from tests.helpers.runs import quiet_run

from sottovoce.config.recipe import Recipe
from sottovoce.data.examples import collate


def test_losses_are_means_over_tokens(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quiet_run(recipe)
    module, logged = run.module, dict[str, float]()
    module.start_stage("joint", 3)
    alone = SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=False)
    trainer = SimpleNamespace(strategy=alone, world_size=1, global_rank=0, accumulate_grad_batches=1)
    monkeypatch.setattr(type(module), "trainer", trainer)
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    drawn = [run.example_sampler("joint", cut=True)(u, 0, 0) for u in run.data.splits["train"].utterances[:5]]
    examples = [run.targets.complete(example) for example in drawn if example]
    batches = [collate(rows, run.audio_reader.read) for rows in (examples[:3], examples[3:])]
    module.eval()
    with torch.no_grad():
        losses = [module.loss(batch) for batch in batches]
    totals, tokens = [float(loss.total) for loss in losses], [loss.tokens for loss in losses]
    assert len(set(tokens)) == 2 and tokens[0] > 3  # rows, tokens and batches count differently
    assert module.training_step(batches[0], 0).item() == pytest.approx(totals[0] / tokens[0], rel=1e-5)
    assert logged["train/loss"] == pytest.approx(totals[0] / tokens[0], rel=1e-5)
    module.on_validation_epoch_start()
    for number, batch in enumerate(batches):
        module.validation_step(batch, number)
    module.on_validation_epoch_end()
    assert logged["val/loss"] == pytest.approx(sum(totals) / sum(tokens), rel=1e-5)
