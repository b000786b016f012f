"""A drive: the commands of a plan one after another, until one is red."""

import json
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.drives.breaks import Break
from tests.drives.plans import PLANS, Plan
from tests.drives.world import Step, World


@dataclass
class Result:
    """A plan's commands, the seconds of each, and what was checked; `fault` says why it is red."""

    name: str
    short: bool
    steps: list[tuple[str, float, list[str]]] = field(default_factory=list)
    fault: str = ""


def drive(world: World, plan: Plan, *, short: bool = False) -> Result:
    """Drive a plan; `short`: without what is tried only, served, or done on two processes."""
    result = Result(plan.name, short)
    try:
        world.part(*plan.parts)
        world.corpus(*plan.corpora)
        if plan.recordings:
            world.recordings()
        for step in plan.steps:
            if short and not in_short(step):
                continue
            done, seen = step.take(world)
            result.steps.append((step.words, done.seconds, seen))
            print(
                f"{plan.name:24} {done.seconds:6.1f} s  {done.words[:150]}\n{'':35}{'; '.join(seen)[:300]}", flush=True
            )
    except Exception as fault:
        result.fault = str(fault) or repr(fault)
        print(f"{plan.name}: red\n{result.fault}", flush=True)
    file = _record(world, plan.name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(asdict(result)))
    return result


def _record(world: World, name: str) -> Path:
    return world.folder / ".driven" / f"{name}.json"


def driven(world: World, name: str) -> Result | None:
    """The last drive of a plan in a folder that is kept."""
    file = _record(world, name)
    return Result(**json.loads(file.read_text())) if file.is_file() else None


def is_driven(world: World, name: str, *, short: bool) -> bool:
    """Whether a folder that is kept holds all that a plan leaves."""
    result = driven(world, name)
    return result is not None and not result.fault and (short or not result.short)


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
