"""`sottovoce sweep`: a recipe with each of several values of some keys, a run folder each, and their comparison.

By a grid, or with `--trials` by Optuna, which looks for the best validation of the last stage, never at the test side.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console
from rich.table import Table

from sottovoce.comparison.compare import compare_runs, write_comparison
from sottovoce.comparison.finished_runs import read_run
from sottovoce.comparison.table import is_finished, train_run
from sottovoce.config.recipe import Recipe, load
from sottovoce.errors import ConfigError, MissingError
from sottovoce.lightning_modules.curriculum import stage_folder
from sottovoce.lightning_modules.monitors import monitored
from sottovoce.lightning_modules.trainer import is_rank_zero

JOURNAL = "optuna.journal"
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})(?P<log>\s+log)?")


class Range(NamedTuple):
    """Values from `low` to `high`, both included; whole numbers where both are written as such."""

    low: float
    high: float
    log: bool


Runs: TypeAlias = list[tuple[Recipe, Mapping[str, Any]]]  # with the values of each
_Made: TypeAlias = tuple[Recipe, str, list[str]]  # the recipe of a run, and the words that make it
Axes = dict[str, list[str] | Range]  # key -> what it may be


def sweep(config: str, overrides: Sequence[str] = (), trials: int | None = None) -> None:
    """The command: `key=a,b` has several values, `key=low..high` (or `'key=low..high log'`) is a range for `--trials`.

    What is finished is used; the same command again goes on where it stopped.

    Raises:
        ConfigError: no key has several values; a value does not fit the recipe; a range without `trials`.
        MissingError: `trials` needs Optuna.
    """
    axes, fixed = _axes(overrides, trials)
    base, console = load(config, fixed), Console(quiet=not is_rank_zero())
    if trials is None:
        made, texts = _grid(config, fixed, base, axes)
        runs: Runs = [(_finished(*one, console), values) for one, values in zip(made, texts, strict=True)]
    else:
        runs = _by_optuna(config, fixed, base, axes, trials, console)
    if not is_rank_zero():
        return
    console.print(_told(runs))
    if len(runs) > 1:
        write_comparison(compare_runs([read_run(run.folder) for run, _ in runs]), base.folder / "comparison", console)


def dry_run(config: str, overrides: Sequence[str] = (), trials: int | None = None) -> None:
    """Check the recipe of each run, and print what would be trained; see `sweep`."""
    axes, fixed = _axes(overrides, trials)
    base, console = load(config, fixed), Console(highlight=False)
    if trials is not None:
        console.print(f"{trials} trials in {base.folder}, whose values Optuna proposes: {', '.join(axes)}")
        return
    for recipe, *_ in _grid(config, fixed, base, axes)[0]:
        state = "finished" if is_finished(recipe) else "begun" if recipe.folder.is_dir() else "new"
        console.print(f"{state:9} {recipe.folder}", soft_wrap=True)


def _axes(overrides: Sequence[str], trials: int | None) -> tuple[Axes, list[str]]:
    """See `axes_of`; refused where they are none, or do not go with `trials`."""
    axes, fixed = axes_of(overrides)
    if not axes:
        why = "no key has several values: write key=a,b or key=low..high, such as stages.joint.lr=1e-3,3e-4"
        raise ConfigError(why, code="empty", where="overrides")
    if trials is None and (ranges := [key for key, axis in axes.items() if isinstance(axis, Range)]):
        raise ConfigError.at(ranges[0], "conflict", "a range needs --trials N; a grid needs values: key=a,b")
    return axes, fixed


def _grid(config: str, fixed: Sequence[str], base: Recipe, axes: Axes) -> tuple[list[_Made], list[dict[str, str]]]:
    """Every run of a grid, and its values."""
    values = product(*(axis for axis in axes.values() if not isinstance(axis, Range)))
    texts = [dict(zip(axes, one, strict=True)) for one in values]
    return [_trial(config, fixed, base, one, grid_name(one)) for one in texts], texts


def axes_of(overrides: Sequence[str]) -> tuple[Axes, list[str]]:
    """The keys that a sweep varies, and the overrides that hold for all of its runs."""
    axes: Axes = {}
    fixed = []
    for override in overrides:
        key, _, text = override.partition("=")
        values = _values(text)
        if found := _RANGE.fullmatch(text.strip()):
            axes[key] = _range(key, found)
        elif len(values) > 1:
            if len(set(values)) < len(values) or not all(values):
                raise ConfigError.at(key, "bad-value", f"a value is empty or comes twice: {text}")
            axes[key] = values
        else:
            fixed.append(override)
    return axes, fixed


def _values(text: str) -> list[str]:
    """Split at commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _range(key: str, found: re.Match[str]) -> Range:
    whole = all(re.fullmatch(r"-?\d+", found[end]) for end in ("low", "high"))
    low, high = ((int if whole else float)(found[end]) for end in ("low", "high"))
    if not low < high or (found["log"] and low <= 0):
        raise ConfigError.at(key, "bad-value", f"a range goes upwards, and one with log from above 0: {found[0]}")
    return Range(low, high, bool(found["log"]))


def grid_name(values: Mapping[str, str]) -> str:
    """The folder of a run: `seed-1/lr-1e-3,stack-4`, with as much of each key as tells them apart."""
    parts = [key.split(".") for key in values]
    shown = []
    for own, value in zip(parts, values.values(), strict=True):
        others = [other for other in parts if other != own]
        count = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        shown.append(("-".join(own[-count:]), re.sub(r"[^\w.+-]+", "_", value).strip("_")))
    seeds = [f"seed-{value}" for name, value in shown if name == "seed"]
    rest = ",".join(f"{name}-{value}" for name, value in shown if name != "seed")
    return "/".join([*seeds, *([rest] if rest else [])])


def _trial(config: str, fixed: Sequence[str], base: Recipe, values: Mapping[str, Any], name: str) -> _Made:
    """The recipe of a run, which is checked, and what makes it."""
    words = [*fixed, *(f"{key}={value}" for key, value in values.items()), f"name={base.name}/{name}"]
    return load(config, words), config, words


def _finished(recipe: Recipe, config: str, words: list[str], console: Console) -> Recipe:
    """Train and score a run, if it is not finished."""
    if not is_finished(recipe):
        console.rule(recipe.name)
        train_run(recipe, config, words)
    return recipe


def best_of(recipe: Recipe) -> float:
    """The best validation of a finished run's last stage, of the metric that the stage monitors."""
    done = stage_folder(recipe, list(recipe.stages)[-1]) / "done.json"
    return float(json.loads(done.read_text("utf-8"))["best"])


def _by_optuna(config: str, fixed: Sequence[str], base: Recipe, axes: Axes, trials: int, console: Console) -> Runs:
    """Trials that Optuna proposes, until there are so many; those that a killed sweep has begun are finished first."""
    try:
        import optuna
    except ImportError as error:
        raise MissingError.at("--trials", "unavailable", "it needs Optuna: pip install 'sottovoce[sweep]'") from error
    if not base.stages:
        raise ConfigError.at("stages", "empty", "there is no validation to look at without a stage")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        why = "start the sweep as one process; it starts those of each run (trainer.devices)"
        raise ConfigError.at("--trials", "conflict", why)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base.folder.mkdir(parents=True, exist_ok=True)
    distributions = {key: _distribution(optuna, axis) for key, axis in axes.items()}
    _, mode = monitored(list(base.stages.values())[-1])
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(base.folder / JOURNAL))), study_name=base.name,
        direction="minimize" if mode == "min" else "maximize", load_if_exists=True,
    )  # fmt: skip
    if study.trials and set(study.trials[0].params) != set(axes):
        why = f"{base.folder} holds trials of other keys ({', '.join(study.trials[0].params)}): take another name"
        raise ConfigError(why, code="mismatch", where=str(base.folder))

    def finish(number: int, values: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        return _finished(*_trial(config, fixed, base, values, f"trial-{number:03}"), console), values

    runs: Runs = []
    waiting = [trial for trial in study.trials if not trial.state.is_finished()]
    done = [trial for trial in study.trials if trial.state.is_finished()]
    runs += [finish(trial.number, trial.params) for trial in done]
    for one in waiting:
        runs.append(finish(one.number, one.params))
        study.tell(one.number, best_of(runs[-1][0]))
    while len(study.trials) < trials:
        # seeded anew for each trial, so that a sweep that goes on does not begin with the same proposals again
        study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))
        trial = study.ask(distributions)
        runs.append(finish(trial.number, trial.params))
        study.tell(trial.number, best_of(runs[-1][0]))
    return runs


def _distribution(optuna: Any, axis: list[str] | Range) -> Any:
    if not isinstance(axis, Range):
        return optuna.distributions.CategoricalDistribution(axis)
    if isinstance(axis.low, int):
        return optuna.distributions.IntDistribution(axis.low, axis.high, log=axis.log)
    return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _told(runs: Sequence[tuple[Recipe, Mapping[str, Any]]]) -> Table:
    """The runs with their values and the best validation of their last stage, the best of all first."""
    recipe = runs[0][0]
    if not recipe.stages:
        table = Table("run")
        for made, _ in runs:
            table.add_row(made.name)
        return table
    metric, mode = monitored(list(recipe.stages.values())[-1])
    table = Table("run", *runs[0][1], metric)
    scored = [(best_of(made), made, values) for made, values in runs]
    sign = 1 if mode == "min" else -1
    for best, made, values in sorted(scored, key=lambda row: math.inf if math.isnan(row[0]) else sign * row[0]):
        table.add_row(
            made.name, *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values.values()), f"{best:.4g}"
        )
    return table
