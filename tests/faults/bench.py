"""The undisturbed run, and moments of it."""

import random

from tests.faults.process import fit
from tests.faults.sabotage import Moment, counted
from tests.faults.world import World


class Bench:
    """A world, and the undisturbed run that all others are held against."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.draw_for("")
        self.whole = world.recipe("whole")
        if not (self.whole.run / "bundle").is_dir():  # a folder that is used again has it
            ended = fit(self.whole, counted)
            if ended.code:
                raise RuntimeError(f"the undisturbed run failed:\n{ended.output}")
        entries = self.whole.entries()
        steps = [(entry["stage"], entry["step"]) for entry in entries if "rows" in entry]
        calls = [*[entry["calls"] for entry in entries if "calls" in entry][1:], 1]  # those of a step stand after it
        self.steps = list(zip(steps, calls, strict=True))

    def draw_for(self, case: str) -> None:
        """Let what is drawn depend on the seed and the case alone, not on the cases before it."""
        self.random = random.Random(f"{self.seed} {case}")

    def moments(self, count: int) -> list[Moment]:
        """Moments of the three stages, in order, each call of a Python function as likely as any other."""
        numbers = self.random.choices(range(len(self.steps)), [calls for _, calls in self.steps], k=count)
        drawn = sorted((i, self.random.randrange(self.steps[i][1])) for i in numbers)
        return [Moment(*self.steps[i][0], calls) for i, calls in drawn]
