"""A drive: the commands of a plan one after another, until one is red."""

import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.drives.breaks import Break
from tests.drives.plans import PLANS, Plan
from tests.drives.world import ROOT, Step, World

BROKEN = "broken.json"  # what became of the breaks, beside the results of plans


@dataclass
class Result:
    """A plan's commands, the seconds of each, and what was checked; `fault` says why it is red.

    `commit` is what was checked out, with a + where files had changed.
    """

    name: str
    short: bool
    steps: list[tuple[str, float, list[str]]] = field(default_factory=list)
    fault: str = ""
    commit: str = ""


def drive(world: World, plan: Plan, *, short: bool = False) -> Result:
    """Drive a plan; `short`: without what is tried only, served, or done on two processes."""
    result = Result(plan.name, short, commit=_commit())
    try:
        world.part(*plan.parts)
        world.corpus(*plan.corpora)
        if plan.recordings:
            world.recordings()
        if plan.own_data:
            world.own_data()
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


def _commit() -> str:
    words = ("git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+")
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if not done.returncode else "no repository"


def _record(world: World, name: str) -> Path:
    return world.folder / ".driven" / f"{name}.json"


def driven(world: World, name: str) -> Result | None:
    """The last drive of a plan in a folder that is kept."""
    file = _record(world, name)
    return Result(**json.loads(file.read_text())) if file.is_file() else None


def is_driven(world: World, name: str, *, short: bool) -> bool:
    """Whether a folder that is kept holds all that a plan leaves."""
    result, steps = driven(world, name), [step for step in PLANS[name].steps if not short or in_short(step)]
    done = {words for words, _, _ in result.steps} if result else set()
    return result is not None and not result.fault and {step.words for step in steps} <= done


def turns_red(broken: Break, like: World, *, short: bool) -> bool:
    """Whether the drive of a broken recipe is red, and says why."""
    with tempfile.TemporaryDirectory(dir=like.folder.parent) as folder:
        world = broken.world(like, Path(folder))
        try:
            fault = drive(world, PLANS[broken.plan], short=short).fault
        finally:
            world.close()
    file, known = like.folder / ".driven" / BROKEN, broken_before(like)
    file.write_text(json.dumps({**known, f"{broken.recipe} {broken.key}": broken.says in fault}))
    return broken.says in fault


def broken_before(world: World) -> dict[str, bool]:
    """Recipe and key of the breaks that have been tried in a folder that is kept -> whether they were red."""
    file = world.folder / ".driven" / BROKEN
    return json.loads(file.read_text()) if file.is_file() else {}


LONG = re.compile(  # what the short form leaves out: commands, and runs that others are like
    r"--dry-run|trainer\.devices=2|sottovoce (?:estimate|analyze|export|evaluate)|conf/pe_ft/table|seed-0/auto"
    r"|voicebench|dual_adapter_zero2"
)


def in_short(step: Step) -> bool:
    """Whether CI takes a step: nothing of `LONG`, and nothing that ends in an error."""
    return not step.code and not LONG.search(step.words)
