"""Mix of each tenth of an epoch: mean duration and share of each task, of the published stage 1 and of the quickstart.

    python benchmarks/epoch_mix.py --seed 1

Utterances of the published mixture are made up, as many and as long as those of the real corpora, without audio; the
order of rows and the draws of tasks are those of `sottovoce fit`. Prints Markdown.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from shared import table

from sottovoce.config.recipe import Recipe, load
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.examples import Examples
from sottovoce.data.tasks import AttributeTask
from sottovoce.data.utterance import Utterance
from sottovoce.lightning_modules.run import example_sampler_of
from sottovoce.training.splits import Split, build_tasks, read_splits
from sottovoce.training.stage_rows import stage_rows

ROOT = Path(__file__).resolve().parents[1]
TENTHS = 10
NEUTRAL = 0.84  # of TextrolSpeech's emotion labels
Lengths = Callable[[np.random.Generator, int], NDArray[np.float64]]


def read_aloud(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """LibriSpeech: most utterances are 12 to 17 s, some as short as 2."""
    return np.where(rng.random(count) < 0.72, rng.normal(14.1, 1.5, count), rng.uniform(2, 13, count)).clip(1.4, 24.5)


def log_normal(mean: float, spread: float) -> Lengths:
    """Lengths in seconds: short ones are frequent, long ones rare."""
    return lambda rng, count: rng.lognormal(np.log(mean) - spread**2 / 2, spread, count).clip(0.5, 40)


# Utterances of the training side, and their lengths; their means are 12.3 s (960.9 h), 5.0 s (330 h) and 3.1 s.
CORPORA: Mapping[str, tuple[int, Lengths]] = {
    "librispeech": (281_241, read_aloud),
    "textrolspeech": (236_203, log_normal(5.0, 0.55)),
    "meld": (9_989, log_normal(3.1, 0.7)),
}


class Mix(NamedTuple):
    """An epoch in tenths."""

    seconds: list[float]  # mean of each tenth
    shares: dict[str, list[float]]  # task -> its share of each tenth
    whole: tuple[float, dict[str, float]]  # the same of the epoch

    def deviations(self) -> dict[str, float]:
        """The largest deviation of a tenth from the whole, relative to it, of the duration and of each task."""
        mean, shares = self.whole
        each = {"duration": (self.seconds, mean), **{task: (self.shares[task], shares[task]) for task in shares}}
        return {name: max(abs(value / whole - 1) for value in values) for name, (values, whole) in each.items()}


def mixture(recipe: Recipe, seed: int) -> Split:
    """The training side of the published mixture, by number and length of utterances."""
    rng, split = np.random.default_rng(seed), Split()
    emotions = build_tasks(recipe)["emotion"]
    assert isinstance(emotions, AttributeTask)
    others = [choice for choice in emotions.choices if choice != "neutral"]
    for node in recipe.data.train:
        count, lengths = CORPORA.get(node.name or "", (0, read_aloud))
        labels = {name: task.choices for name, task in build_tasks(recipe).items() if isinstance(task, AttributeTask)}
        for number, seconds in enumerate(lengths(rng, count)):
            said = {name: str(rng.choice(choices)) for name, choices in labels.items() if name != "emotion"}
            said["emotion"] = "neutral" if rng.random() < NEUTRAL else others[number % len(others)]
            name, only = f"{node.name}-{number}", None if node.tasks is None else tuple(node.tasks)
            split.utterances.append(Utterance(name, Path(name), "a", None, float(seconds), said, only=only))
            split.weights.append(node.weight)
            split.names[name] = node.name or ""
    return split


def mixes(recipe: Recipe, split: Split, stage: str, ranks: int) -> list[Mix]:
    """Each epoch of a stage, as `sottovoce fit` draws it."""
    node, drawing = recipe.stages[stage], example_sampler_of(recipe, build_tasks(recipe), stage, cut=True)
    side = stage_rows(split, node, drawing, training=True)
    order = BatchSampler(
        side.seconds, side.weights, node.batch_size, node.epochs, recipe.seed,
        ranks=ranks, groups=side.groups, accumulate=node.accumulate_grad_batches,
    )  # fmt: skip
    examples = Examples(side.utterances, drawing, node.draws, None, read=lambda path: split.seconds)  # type: ignore[arg-type,return-value]
    epochs: list[list[tuple[list[float], Counter[str]]]] = [[] for _ in range(node.epochs)]
    for rows in order.global_steps():
        drawn = examples.examples(rows)
        epochs[rows.epoch].append(([e.utterance.seconds for e in drawn], Counter(e.task for e in drawn)))
    return [_mix(steps) for steps in epochs if steps]


def _mix(steps: list[tuple[list[float], Counter[str]]]) -> Mix:
    borders = np.linspace(0, len(steps), TENTHS + 1).astype(int)
    tenths = [steps[first:last] for first, last in pairwise(borders)]
    seconds = [[s for lengths, _ in tenth for s in lengths] for tenth in tenths]
    counts = [sum((tasks for _, tasks in tenth), Counter()) for tenth in tenths]
    whole = sum(counts, Counter[str]())
    return Mix(
        [float(np.mean(each)) for each in seconds],
        {task: [count[task] / count.total() for count in counts] for task in whole},
        (float(np.mean(np.concatenate(seconds))), {task: count / whole.total() for task, count in whole.items()}),
    )


def report(title: str, epochs: list[Mix]) -> str:
    """Markdown: the tenths of the first epoch, and the largest deviations of all epochs."""
    first, tasks = epochs[0], list(epochs[0].whole[1])
    rows: list[list[object]] = [
        [number + 1, f"{first.seconds[number]:.2f}", *(f"{100 * first.shares[task][number]:.1f}" for task in tasks)]
        for number in range(TENTHS)
    ]
    rows.append(["whole", f"{first.whole[0]:.2f}", *(f"{100 * first.whole[1][task]:.1f}" for task in tasks)])
    most = [max(mix.deviations()[name] for mix in epochs) for name in ("duration", *tasks)]
    rows.append([f"furthest of {len(epochs)} epochs, %", *(f"{100 * value:.1f}" for value in most)])
    return f"## {title}\n\n{table(['tenth', 'mean s', *(f'{task}, %' for task in tasks)], rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of the quickstart, such as data.cache=FOLDER")
    arguments = parser.parse_args()
    published = load(ROOT / "conf/dual_adapter.yaml", [f"seed={arguments.seed}"])
    processes = int(published.trainer["devices"])
    split = mixture(published, arguments.seed)
    told = report("Published stage 1", mixes(published, split, "joint", processes))
    Console().print(told, markup=False, soft_wrap=True)
    quick = load(ROOT / "conf/quickstart.yaml", [f"seed={arguments.seed}", *arguments.overrides])
    split = read_splits(quick).splits["train"]
    for stage in quick.stages:
        Console().print(report(f"Quickstart, {stage}", mixes(quick, split, stage, 1)), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
