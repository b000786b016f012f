"""Estimates of recipes whose `trainer` asks for less than the whole: what is counted is what a run makes."""

from collections import Counter
from typing import Any

import pytest
from tests.helpers.runs import Fit

from sottovoce.config import recipe as recipes
from sottovoce.estimation.estimate import estimate
from sottovoce.estimation.hardware import GPUS
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.training.splits import read_splits


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 2}, {"limit_train_batches": 0.5, "limit_val_batches": 1}, {"overfit_batches": 1},
        {"fast_dev_run": 2},
    ],
    ids=str,
)  # fmt: skip
def test_limits_of_the_trainer_count(
    settings: dict[str, Any], tree: dict[str, Any], fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Steps and validation batches of a stage are those that are made."""
    node = tree["stages"]["joint"] | {"batch_size": 3, "val_checks_per_epoch": 2}
    tree["stages"], tree["trainer"] = {"joint": node}, tree["trainer"] | settings
    whole, limited = (
        estimate(recipe, GPUS["h100"], read_splits(recipe)).stages[0]
        for recipe in (recipes.parse({**tree, "trainer": {}}), recipes.parse(tree))
    )
    made: Counter[bool] = Counter()
    loss = SpeechLLM.loss

    def counted(self: SpeechLLM, batch: Any) -> Any:
        made[self.training] += 1
        return loss(self, batch)

    monkeypatch.setattr(SpeechLLM, "loss", counted)
    fit(stages=tree["stages"], trainer=tree["trainer"], evaluation={"limit": 1, "max_new_tokens": 2})
    assert limited.steps * limited.epochs == pytest.approx(made[True])
    assert made[True] < whole.steps * whole.epochs
    each = whole.validation / 2 / 2  # two validations an epoch, of two batches
    assert limited.validation * limited.epochs == pytest.approx(each * made[False])
