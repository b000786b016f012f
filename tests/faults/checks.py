"""Checks after a fault: the same weights, every example once, an error in one line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sottovoce.evaluation.records import read_results
from tests.faults.process import Ended, fit
from tests.faults.world import STAGES, Command

Run = Callable[[Command], Sequence[Ended]]  # what runs a command, in one process or two


def fit_alone(command: Command) -> list[Ended]:
    """Run a command undisturbed, in one process."""
    return [fit(command)]


@dataclass
class Row:
    """A line of the table: what was done, how often, how it ended and what was lost; `faults` is what did not hold."""

    done: str
    times: int
    ended: str = ""
    lost: str = ""
    faults: list[str] = field(default_factory=list)

    def demand(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.faults.append(what)

    def demand_line(self, ended: Ended, *words: str) -> None:
        """The process has ended with one line for its user, in which these words stand."""
        missing = [word for word in words if word not in ended.error]
        told = f"exit {ended.code}, expected a line with {missing}: {ended.output[-800:]}"
        self.demand(ended.plain and not missing, told)

    def demand_recovery(self, command: Command, whole: Command, rerun: Run = fit_alone, note: str = "") -> None:
        """The same command goes on to the end, in the weights and scores of the undisturbed run, bit for bit.

        Each step had the undisturbed run's examples.
        """
        done = rerun(command)
        for ended in done:
            self.demand_finished(ended)
        self.faults += differences(command, whole) if not any(ended.code for ended in done) else []
        steps = [_key(entry) for entry in command.entries() if "rows" in entry]
        due = sum("rows" in entry for entry in whole.entries())
        self.lost = f"{len(steps) - len(set(steps))} of {due} steps made again{note}"

    def demand_finished(self, ended: Ended) -> None:
        self.demand(ended.code == 0, f"the same command did not finish: exit {ended.code}: {ended.output[-800:]}")


def differences(command: Command, whole: Command) -> list[str]:
    """How a finished run differs from the undisturbed one."""
    ours, theirs = command.weights(), whole.weights()
    faults = [f"{stage}: not trained" for stage in STAGES if stage not in ours]
    for stage in set(ours) & set(theirs):
        faults += [
            f"{stage}: other weights {name}"
            for name, value in theirs[stage].items()
            if name not in ours[stage] or not torch.equal(ours[stage][name], value)
        ]
    scores = [[replace(r, system="") for r in read_results(c.run / "evaluation")] for c in (command, whole)]
    faults += ["other scores"] if scores[0] != scores[1] else []
    return faults + order_faults(command.entries(), whole.entries())


def order_faults(entries: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]]) -> list[str]:
    """Whether every step was made with the examples of the undisturbed run, and none was left out on the way."""
    expected = {_key(entry): entry["rows"] for entry in whole if "rows" in entry}
    number = {key: i for rank in (0, 1) for i, key in enumerate(key for key in expected if key[2] == rank)}
    faults, done = [], {(rank, -1) for rank in (0, 1)}
    for entry in entries:
        if "rows" not in entry:
            continue
        key = _key(entry)
        if expected.get(key) != entry["rows"]:
            faults.append(f"{key}: other examples than in the undisturbed run")
        elif (key[2], number[key] - 1) not in done:
            faults.append(f"{key}: begun before the step before it")
        else:
            done.add((key[2], number[key]))
    return faults + [f"{key}: left out" for key, i in number.items() if (key[2], i) not in done]


def _key(entry: dict[str, Any]) -> tuple[str, int, int]:
    return entry["stage"], entry["step"], entry["rank"]


def finite(command: Command, read: Callable[[Any], dict[str, Any]]) -> bool:
    """Whether every weight in every checkpoint of a run is finite."""
    files = sorted(command.run.glob("stages/*/*.ckpt"))
    return bool(files) and all(value.isfinite().all() for file in files for value in read(file)["state_dict"].values())
