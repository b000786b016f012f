"""Comparison of systems on the same utterances: scores, paired differences, cost, published numbers; as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from statistics import mean

from sottovoce.errors import SottovoceError, nearest
from sottovoce.evaluation.metrics import DECIMALS
from sottovoce.evaluation.paired_bootstrap import Estimate, Key, Seeds, estimate
from sottovoce.evaluation.reports.results import label_of, order_of, speakers_note

COSTS = {  # of a stage, as its done.json has them -> title, format
    "trainable": ("trainable parameters", "{:,.0f}"),
    "steps": ("steps", "{:,.0f}"),
    "seconds_per_step": ("seconds a step", "{:.3f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
}
COLUMNS = {  # of table I and section V-C of Kang et al. (2024): the score, and the unit that the paper prints it in
    "rouge_1": (Key("response", "rouge_1", "both"), 1.0),
    "rouge_2": (Key("response", "rouge_2", "both"), 1.0),
    "rouge_l": (Key("response", "rouge_l", "both"), 1.0),
    "bert_score": (Key("response", "bert_score", "both"), 0.01),
    "quality": (Key("response", "judge_quality", "both"), 1.0),
    "emotion": (Key("response", "judge_emotion", "both"), 1.0),
    "ser": (Key("emotion", "accuracy", "both"), 0.01),
    "ser_unweighted": (Key("emotion", "balanced_accuracy", "both"), 0.01),
    "probe": (Key("emotion", "probe", "both"), 0.01),
}
CSV_HEADER = "kind system against seed task metric slots value low high lowest highest n speakers".split()


@dataclass(frozen=True)
class System:
    """What is compared: one recipe with one seed or several, and the folders of its runs.

    `costs` are (stage, what of `COSTS`) -> what each run took; `published` is what a paper reports of each score: value
    and half of its interval, in our unit.
    """

    seeds: Sequence[int]
    runs: Sequence[str]
    costs: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)  # of the recipe, where systems differ
    title: str = ""  # in words, if it has such a name
    published: Mapping[Key, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Systems, their scores and the differences between them."""

    systems: Mapping[str, System]
    baseline: str  # the system that the others are held against first
    scores: Mapping[Key, Mapping[str, Estimate]]  # of each system
    differences: Mapping[Key, Mapping[tuple[str, str], Estimate]]  # (system, other) -> how much higher the system's is
    slots: str  # the choice that stands first
    remarks: Sequence[str] = ()  # what a reader must know about the numbers

    @property
    def others(self) -> list[str]:
        return [name for name in self.systems if name != self.baseline]

    @property
    def headline(self) -> list[Key]:
        """Scores of the first choice of slots, and of text retention; the others are scores of single slots."""
        return [key for key in self.scores if key.slots == self.slots or key.task == "retention"]

    @property
    def compared(self) -> list[Key]:
        """Scores whose differences are shown; changes differ as what they are changes of does."""
        return [key for key in self.headline if not key.metric.endswith("_change")]

    @property
    def intervals(self) -> str:
        """What intervals are over, in words; empty for utterances."""
        return speakers_note(score.speakers for found in self.scores.values() for score in found.values())

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(key for system in self.systems.values() for key in system.settings))

    @property
    def costs(self) -> list[tuple[str, str]]:
        """(stage, what it took), stage by stage."""
        return list(dict.fromkeys(key for system in self.systems.values() for key in system.costs))

    @property
    def published(self) -> dict[Key, dict[str, list[float]]]:
        """Score -> system -> value and, where it was published, half of the interval, in the unit of our own."""
        keys = dict.fromkeys(key for system in self.systems.values() for key in system.published)
        return {
            key: {name: list(system.published[key]) for name, system in self.systems.items() if key in system.published}
            for key in keys
        }


def of_columns(paper: Mapping[str, Sequence[float]]) -> dict[Key, list[float]]:
    """Numbers by column of `COLUMNS`, in the paper's unit, as `System.published`."""
    return {
        key: [round(unit * number, DECIMALS) for number in paper[column]]
        for column, (key, unit) in COLUMNS.items()
        if paper.get(column)
    }


def of_recipe(published: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> dict[Key, list[float]]:
    """Numbers by slots, task and score, as a recipe's `published` has them, as `System.published`."""
    return {
        Key(task, metric, slots): [float(number) for number in numbers]
        for slots, tasks in published.items()
        for task, scores in tasks.items()
        for metric, numbers in scores.items()
    }


def comparison_of(
    systems: Mapping[str, System],
    measured: Mapping[Key, Mapping[str, Seeds]],
    baseline: str,
    remarks: Sequence[str] = (),
    unpaired: Sequence[frozenset[str]] = (),
    reported: Mapping[Key, Mapping[str, Estimate]] | None = None,
) -> Comparison:
    """Estimate every score and every difference, but for `unpaired` systems, which were not asked the same.

    `reported` are scores that cannot be measured again; they have no differences.

    Raises:
        SottovoceError: no system is called `baseline`.
    """
    if baseline not in systems:
        message = f"no system is called {baseline!r}.{nearest(baseline, systems)}"
        raise SottovoceError(message, code="unknown-name", where="against")
    found = {key: {name: estimate(seeds) for name, seeds in by_system.items()} for key, by_system in measured.items()}
    ordered = sorted({**(reported or {}), **found}, key=order_of)
    scores = {key: found[key] if key in found else (reported or {})[key] for key in ordered}
    differences = {
        key: {
            (name, other): scores[key][name] - scores[key][other]
            for name, other in permutations(scores[key], 2)
            if key in found and frozenset((name, other)) not in unpaired
        }
        for key in ordered
    }
    slots = [key.slots for key in ordered if key.task != "retention"]
    first = "both" if "both" in slots or not slots else slots[0]
    return Comparison(systems, baseline, scores, differences, first, remarks)


def is_better(metric: str, difference: Estimate) -> bool | None:
    """Whether a difference is significantly for the better or the worse; None where its interval holds 0."""
    if not difference.is_significant:
        return None
    return (difference.value < 0) == (label_of(metric).endswith("↓"))


def comparison_csv(comparison: Comparison) -> str:
    """Every number, one a line, in the units of `results.json`: scores, differences, each seed's, costs, published."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    writer.writerows(_lines(comparison))
    return out.getvalue()


def _lines(comparison: Comparison) -> Iterator[list[object]]:
    for key, scores in comparison.scores.items():
        for name, score in scores.items():
            yield from _estimate_lines("score", name, "", key, score)
    for key, differences in comparison.differences.items():
        for (name, other), difference in differences.items():
            yield from _estimate_lines("difference", name, other, key, difference)
    for name, system in comparison.systems.items():
        for (stage, what), numbers in system.costs.items():
            yield ["cost", name, "", "", stage, what, "", mean(numbers), "", "", min(numbers), max(numbers), "", ""]
    for key, published in comparison.published.items():
        for name, (value, *half) in published.items():
            ends = [round(value - half[0], DECIMALS), round(value + half[0], DECIMALS)] if half else ["", ""]
            yield ["published", name, "", "", *key, value, *ends, "", "", "", ""]


def _estimate_lines(kind: str, name: str, other: str, key: Key, score: Estimate) -> Iterator[list[object]]:
    over = score.speakers or ""  # whom the interval is resampled over; else utterances
    ends = [min(score.each.values()), max(score.each.values())] if score.each else ["", ""]
    yield [kind, name, other, "", *key, score.value, score.low, score.high, *ends, score.n, over]
    for seed, value in score.each.items():
        yield [f"{kind} of a seed", name, other, seed, *key, value, "", "", "", "", score.n, ""]
