"""VoiceBench's scores: one for each subset, and their mean, the overall score of the leaderboard.

As its authors compute it: 20 times the mean rating of open-ended subsets; of SD-QA the mean of PANDA's and the judge's
accuracy; of IFEval the mean of strict and loose accuracies of prompts and of instructions; elsewhere the share of right
answers, of AdvBench that of refusals. The overall score is the mean of all nine (github.com/MatthewCYM/VoiceBench,
README and issue 2).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sottovoce.errors import MissingError, SottovoceError
from sottovoce.evaluation.bootstrap import Array, mean_of_ratios
from sottovoce.evaluation.metrics import Measure
from sottovoce.evaluation.voicebench import KINDS, TASK
from sottovoce.evaluation.voicebench.answers import LETTERS, choice, holds_reference, refuses, truth
from sottovoce.evaluation.voicebench.instructions import followed
from sottovoce.io import atomic_write

HIGHEST = 5  # of ratings
_TRUTHS = {"yes": True, "no": False, "(a)": False, "(b)": True}  # BBH's references
Panda = Callable[[str, str, str], bool]  # response, reference, prompt -> whether the response gives the reference


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt of VoiceBench.

    `fields` are the row's own: `original_id` of BBH; `instruction_id_list` and `kwargs` of IFEval. `judged` are the
    ratings of an open-ended answer, 1 to 5, or the votes on one of SD-QA, 1 for right; None where nobody has judged.
    """

    id: str
    subset: str  # a column of the leaderboard, a key of `KINDS`
    prompt: str
    response: str
    reference: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    judged: tuple[float, ...] | None = None


Rows = dict[str, list[float]]  # id of an answer -> what it contributes: hits, then occurrences


class Part(NamedTuple):
    """The scores of a subset. `scores` are rows of each metric, `main` is what the overall score takes its share of."""

    scores: dict[str, Rows]
    main: Rows
    notes: str


def part_of(subset: str, answers: Sequence[Answer], panda: Panda | None = None) -> Part:
    """Score the answers to a subset; one that nobody has judged, where that is due, contributes to no score by a judge.

    Raises:
        SottovoceError: a row lacks the reference or the instructions that it is scored by, or has unknown ones.
        MissingError: a package is not installed that IFEval's checks need.
    """
    kind = KINDS[subset]
    unjudged = sum(not a.judged for a in answers) if kind in ("open", "qa") else 0
    notes = f"{unjudged} of {len(answers)} were not judged" if unjudged else ""
    if kind == "open":
        ratings = {a.id: float(np.mean(a.judged)) for a in answers if a.judged}
        main = {name: [rating / HIGHEST, 1.0] for name, rating in ratings.items()}
        return Part({"rating": {name: [rating, 1.0] for name, rating in ratings.items()}}, main, notes)
    if kind == "qa":
        found = {a.id: [float((panda or _panda)(a.response, _reference(a), a.prompt)), 1.0] for a in answers}
        judged = {a.id: [float(np.mean(a.judged) > 0.5), 1.0] for a in answers if a.judged}
        both = {name: [(vote + found[name][0]) / 2, 1.0] for name, (vote, _) in judged.items()}
        return Part({"score": both, "panda": found, "judged": judged}, both, notes)
    if kind == "instructions":
        return _instructions(answers)
    right, chance = {"choice": _choice, "truth": _truth, "refusal": _refusal}[kind]
    read = {a.id: right(a) for a in answers}
    rows = {name: [chance if value is None else float(value), 1.0] for name, value in read.items()}
    if unread := sum(value is None for value in read.values()):
        notes = f"{unread} of {len(answers)} answers name no choice and count as a guess, {100 * chance:g} %"
    return Part({"score": rows}, rows, notes)


def _panda(response: str, reference: str, prompt: str) -> bool:
    return holds_reference(response, reference)


def _chosen(answer: Answer) -> bool | None:
    due = _reference(answer).strip().upper()
    if len(due) != 1 or due.lower() not in LETTERS:
        raise SottovoceError.at(answer.id, "bad-value", f"the reference must be a letter from A to D, found {due!r}")
    letter = choice(answer.response)
    return None if letter is None else letter == due


def _true(answer: Answer) -> bool | None:
    due = _reference(answer).strip().lower()
    if due not in _TRUTHS:
        told = f"the reference must be one of {', '.join(_TRUTHS)}, found {due!r}"
        raise SottovoceError.at(answer.id, "bad-value", told)
    try:
        value = truth(answer.response, str(answer.fields.get("original_id", "")))
    except KeyError as error:
        told = f"no task of BBH that VoiceBench has: {error}; is `original_id` in the manifest's fields?"
        raise SottovoceError.at(answer.id, "unknown-name", told) from None
    return None if value is None else value == _TRUTHS[due]


def _refused(answer: Answer) -> bool | None:
    return refuses(answer.response)


_choice, _truth, _refusal = (_chosen, 0.25), (_true, 0.5), (_refused, 0.0)  # and the chance of a guess


def _instructions(answers: Sequence[Answer]) -> Part:
    parts: dict[str, Rows] = {name: {} for name in ("strict_prompt", "strict_each", "loose_prompt", "loose_each")}
    main: Rows = {}
    for answer in answers:
        names, arguments = answer.fields.get("instruction_id_list"), answer.fields.get("kwargs")
        if not names or arguments is None:
            told = "it has no instruction_id_list or no kwargs; prepare the corpus anew"
            raise SottovoceError.at(answer.id, "missing-key", told)
        result = followed(_bare(answer.response), names, arguments, answer.id)
        hits, counts = [], []
        for kind, each in zip(("strict", "loose"), result, strict=True):
            pairs = [(f"{kind}_prompt", float(all(each)), 1.0), (f"{kind}_each", float(sum(each)), float(len(each)))]
            for name, hit, count in pairs:
                parts[name][answer.id] = [hit, count]
                hits.append(hit)
                counts.append(count)
        main[answer.id] = [*hits, *counts]
    return Part({"score": main, **parts}, main, "")


def _bare(response: str) -> str:
    """Without the marks that some audio LLMs put around their answers."""
    bare = response[3:].strip() if response.startswith(("<1>", "<2>", "<3>")) else response
    return bare.removesuffix("<|user|>").strip() if bare.endswith("<|user|>") else bare


def _reference(answer: Answer) -> str:
    if answer.reference is None:
        raise SottovoceError.at(answer.id, "missing-key", f"{answer.subset} is scored by a reference, and it has none")
    return answer.reference


When = Literal["", "_before", "_change"]


def measures(after: Mapping[str, Part], before: Mapping[str, Part] | None = None) -> dict[tuple[str, str], Measure]:
    """Measures by (task, metric), such as (`voicebench (mmsu)`, `score`), of subsets that have been scored.

    The overall score is (`voicebench`, `score`), where all nine have. With `before`, the same model's scores before it
    was tuned: `score_before`, and `score_change` with a paired interval. Then only what was scored both times counts.
    """
    found: dict[tuple[str, str], Measure] = {}
    main: dict[When, dict[str, Rows]] = {"": {}, "_before": {}}
    for subset, part in after.items():
        earlier = before.get(subset) if before else None
        for metric, rows in part.scores.items():
            then = earlier.scores.get(metric) if earlier else None
            for when, measure in _both({subset: rows}, None if then is None else {subset: then}, part.notes).items():
                found[f"{TASK} ({subset})", f"{metric}{when}"] = measure
        main[""][subset] = part.main
        if earlier:
            main["_before"][subset] = earlier.main
    if all(main[""].get(name) for name in KINDS):
        complete = all(main["_before"].get(name) for name in KINDS)
        for when, measure in _both(main[""], main["_before"] if complete else None, "").items():
            found[TASK, f"score{when}"] = measure
    return found


def _both(now: dict[str, Rows], then: dict[str, Rows] | None, notes: str) -> dict[When, Measure]:
    """The mean of subsets' scores now; and then, and the change, on what both have."""
    if then is not None:
        shared = {subset: rows.keys() & then[subset].keys() for subset, rows in now.items()}
        now = {
            subset: {name: row for name, row in rows.items() if name in shared[subset]} for subset, rows in now.items()
        }
        then = {subset: {name: then[subset][name] for name in rows} for subset, rows in now.items()}
    if not all(now.values()):
        return {}
    sizes = [len(next(iter(rows.values()))) for rows in now.values()]
    here, statistic = _table(now), _mean_of_subsets(sizes)
    made: dict[When, Measure] = {"": _measure(here, statistic, notes)}
    if then is not None:
        there, width = _table(then), sum(sizes)

        def change(sums: Array) -> Array:
            difference: Array = statistic(sums[:, :width]) - statistic(sums[:, width:])
            return difference

        made["_before"] = _measure(there, statistic, "")
        made["_change"] = _measure(np.hstack([here, there]), change, "")
    return made


def _measure(rows: Array, statistic: Callable[[Array], Array], notes: str) -> Measure:
    return Measure(float(statistic(rows.sum(axis=0, keepdims=True))[0]), rows, statistic, None, notes)


def _table(parts: Mapping[str, Rows]) -> Array:
    """(answers, columns): each subset has columns of its own."""
    blocks = [np.array(list(rows.values()), np.float64) for rows in parts.values()]
    table = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        table[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return table


def _mean_of_subsets(sizes: Sequence[int]) -> Callable[[Array], Array]:
    """Mean of the subsets' scores, each of so many columns; one that a resample misses does not count in it."""
    ends = np.cumsum(sizes)[:-1]

    def statistic(sums: Array) -> Array:
        with np.errstate(invalid="ignore"):
            scores = np.stack([mean_of_ratios(part) for part in np.split(sums, ends, axis=1)])
        mean: Array = np.nanmean(scores, axis=0)
        return mean

    return statistic


def write_answers(file: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON lines."""
    atomic_write(file, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def read_answers(file: Path) -> list[Answer]:
    """Read answers back that `write_answers` wrote; errors where there are none, or they are damaged."""
    if not file.is_file():
        raise MissingError.at(file, "not-found", "this run has not answered VoiceBench")
    try:
        rows = [Answer(**json.loads(line)) for line in file.read_text("utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise SottovoceError.at(file, "damaged", f"not the answers to VoiceBench: {error}") from None
    return [replace(row, judged=None if row.judged is None else tuple(row.judged)) for row in rows]
