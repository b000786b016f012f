"""A drive: the commands of a plan one after another, until one is red."""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.drives.breaks import Break
from tests.drives.plans import PLANS, Plan
from tests.drives.world import Done, Step, World


@dataclass
class Result:
    """What a plan's commands took and what was checked; `fault` says why it is red."""

    plan: Plan
    steps: list[tuple[Done, list[str]]] = field(default_factory=list)
    fault: str = ""
    seconds: float = 0.0


def drive(world: World, plan: Plan, *, short: bool = False) -> Result:
    """Drive a plan; `short`: without what is tried only, served, or done on two processes."""
    result, mark = Result(plan), world.folder / ".driven" / plan.name
    try:
        world.part(*plan.parts)
        world.corpus(*plan.corpora)
        if plan.recordings:
            world.recordings()
        for step in plan.steps:
            if short and not in_short(step):
                continue
            done, seen = step.take(world)
            result.steps.append((done, seen))
            print(
                f"{plan.name:24} {done.seconds:6.1f} s  {done.words[:150]}\n{'':35}{'; '.join(seen)[:300]}", flush=True
            )
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    except Exception as fault:
        result.fault = str(fault) or repr(fault)
        print(f"{plan.name}: red\n{result.fault}", flush=True)
    return result


def is_driven(world: World, name: str) -> bool:
    """Whether a folder that is kept holds all that a plan leaves."""
    return (world.folder / ".driven" / name).is_file()


def turns_red(broken: Break, like: World, *, short: bool) -> bool:
    """Whether the drive of a broken recipe is red, and says why."""
    with tempfile.TemporaryDirectory(dir=like.folder.parent) as folder:
        world = broken.world(like, Path(folder))
        try:
            fault = drive(world, PLANS[broken.plan], short=short).fault
        finally:
            world.close()
    return broken.says in fault


LONG = ("label", "estimate", "analyze", "export", "evaluate")  # commands that the short form leaves out


def in_short(step: Step) -> bool:
    """Whether CI takes a step: no dry run, no second process, nothing that ends in an error, no command of `LONG`."""
    command = step.words.split()[1]
    return command not in LONG and not step.code and not re.search(r"--dry-run|trainer\.devices=2", step.words)
