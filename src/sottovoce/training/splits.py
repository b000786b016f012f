"""Data splits of a run: manifests read and checked, with every fault named before training starts."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from sottovoce.config.recipe import SPLITS, Recipe
from sottovoce.config.sections import StageConfig
from sottovoce.config.sources import SourceConfig
from sottovoce.data.clip_reference import Recordings
from sottovoce.data.examples import ExampleSampler
from sottovoce.data.lazy_manifest import LazyManifest
from sottovoce.data.manifest import Root, read_manifest, refuse
from sottovoce.data.overrides import Overrides
from sottovoce.data.own_attribute import build_task, choices_of
from sottovoce.data.tasks import Task
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ManifestError, SottovoceError
from sottovoce.training.source_manifests import source_manifests

_NAMED = 5  # speakers that a note names
_LOOKED_AT = 100  # lines of each lazy manifest


@dataclass
class Split:
    """Utterances of one side of the data."""

    utterances: list[Utterance] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # how often an epoch sees each
    names: dict[str, str] = field(default_factory=dict)  # utterance id -> part of the data; absent: none of its own
    _served: dict[tuple[str, bool], tuple[ExampleSampler, list[list[str]]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def clips(self) -> list[Path]:
        """Every audio file that these utterances and their contexts name, once."""
        return list(dict.fromkeys(path for u in self.utterances for path in u.clips))

    def silent(self) -> set[Path]:
        """Clips on which nothing is said."""
        return {u.clip for u in self.utterances if u.text == "" and u.audio}

    @property
    def seconds(self) -> NDArray[np.float32]:
        """(utterances,) length of each."""
        return np.array([u.seconds for u in self.utterances], np.float32)

    def groups(self, drawing: ExampleSampler) -> NDArray[np.int64]:
        """(utterances,) number of each one's part of the data and tasks of a stage: batches mix these evenly."""
        keys = [(self.names.get(u.id), *tasks) for u, tasks in zip(self.utterances, self.served(drawing), strict=True)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], np.int64)

    def served(self, drawing: ExampleSampler) -> Iterable[list[str]]:
        """The tasks of a stage that each utterance serves; it is asked again and again before a stage begins."""
        key = drawing.stage, drawing.cut
        known = self._served.get(key)
        if known is None or known[0] != drawing or len(known[1]) != len(self.utterances):
            known = self._served[key] = drawing, list(map(drawing.possible, self.utterances))
        return known[1]

    def parts(self) -> Iterator[str | None]:
        """Each utterance's part of the data."""
        return (self.names.get(u.id) for u in self.utterances)

    def fingerprint_rows(self) -> Iterator[tuple[str, float, float]]:
        """Id, seconds and weight of each utterance."""
        return ((u.id, u.seconds, weight) for u, weight in zip(self.utterances, self.weights, strict=True))

    def stage_weights(self, stage: StageConfig, drawing: ExampleSampler, *, training: bool) -> NDArray[np.float64]:
        """(utterances,) how often an epoch of a stage sees each: never, if no task of the stage can use it."""
        parts = stage.parts or {}
        usual = self.weights if training else [1.0] * len(self.weights)
        weights = [parts.get(self.names.get(u.id, ""), w) for u, w in zip(self.utterances, usual, strict=True)]
        return np.array(weights, np.float64) * [bool(tasks) for tasks in self.served(drawing)]

    def without(self, clips: set[Path]) -> "Split":
        """The split without the utterances that need one of these clips."""
        return self.only(clips.isdisjoint(u.clips) for u in self.utterances)

    @property
    def overrides(self) -> list[Overrides]:
        """What manifests have of their own, each once."""
        return list({id(u.overrides): u.overrides for u in self.utterances if u.overrides}.values())

    def only(self, wanted: Iterable[bool]) -> "Split":
        """The split of those of its utterances that are wanted."""
        kept = list(compress(range(len(self.utterances)), wanted))
        return Split([self.utterances[i] for i in kept], [self.weights[i] for i in kept], self.names)


class LazySplit(Split):
    """A side whose lines are read and checked when they are drawn (`data.validate: lazy`)."""

    def __init__(self, sources: Sequence[LazyManifest], nodes: Sequence[SourceConfig]) -> None:
        super().__init__(cast(Any, ConcatDataset(cast(Any, sources))))
        self._seconds = np.concatenate([source.seconds for source in sources])
        self._sources, self._nodes = sources, nodes

    @property
    def seconds(self) -> NDArray[np.float32]:
        return self._seconds

    def groups(self, drawing: ExampleSampler) -> NDArray[np.int64]:
        """See `Split`; before lines are read, only their manifests are known."""
        return self._each(range(len(self._sources))).astype(np.int64)

    def served(self, drawing: ExampleSampler) -> Iterator[list[str]]:
        """See `Split`; those that the line's manifest may serve."""
        drawn = [task for task, weight in drawing.weights.items() if weight > 0]
        for node, source in zip(self._nodes, self._sources, strict=True):
            yield from repeat([task for task in drawn if node.tasks is None or task in node.tasks], len(source))

    def parts(self) -> Iterator[str | None]:
        """See `Split`."""
        for node, source in zip(self._nodes, self._sources, strict=True):
            yield from repeat(node.name, len(source))

    def stage_weights(self, stage: StageConfig, drawing: ExampleSampler, *, training: bool) -> NDArray[np.float64]:
        """See `Split`; before lines are read, only what whole manifests may serve is known."""
        useful = {name for name, weight in stage.tasks.items() if weight > 0}
        parts = stage.parts or {}
        return self._each(
            parts.get(node.name or "", node.weight) if node.tasks is None or useful.intersection(node.tasks) else 0.0
            for node in self._nodes
        )

    def _each(self, weights: Iterable[float]) -> NDArray[np.float64]:
        return np.repeat(np.array(list(weights)), [len(source) for source in self._sources])

    def fingerprint_rows(self) -> Iterator[tuple[str, float, float]]:
        """As much as is known before lines are read: the digest of all lengths and weights, and how many there are."""
        weights = self._each(node.weight for node in self._nodes)
        digest = hashlib.sha256(self.seconds.tobytes() + weights.tobytes()).hexdigest()
        yield digest, float(len(self.seconds)), 0.0

    def silent(self) -> set[Path]:
        """None, as `clips`: a silent clip is left out when it is drawn."""
        return set()

    @property
    def overrides(self) -> list[Overrides]:
        """See `Split`."""
        return [source.overrides for source in self._sources if source.overrides]

    def clips(self) -> list[Path]:
        """None: which clips there are shows when they are drawn."""
        return []

    def without(self, clips: set[Path]) -> "Split":
        """All of it: what is faulty is left out when it is drawn."""
        return self


@dataclass
class DataSplits:
    """All splits, and what was wrong with the lines and clips that were left out."""

    splits: dict[str, Split]
    faults: list[SottovoceError]
    notes: list[str] = field(default_factory=list)  # what is to be known of the data that are used


def build_tasks(recipe: Recipe) -> dict[str, Task]:
    """Every task that the recipe uses, by name."""
    return {name: build_task(name, node) for name, node in recipe.tasks.items()}


def read_splits(recipe: Recipe) -> DataSplits:
    """Read and check all manifests of a recipe.

    Raises:
        MissingError: manifests are not there; says which, and what to do.
        ManifestError: lines are faulty and the recipe's policy is `error`; or utterances stand in two splits.
    """
    sources, converted = source_manifests(recipe)
    data = DataSplits({name: Split() for name in SPLITS}, [], converted)
    unread = sources.pop("train", []) if recipe.data.validate == "lazy" else []
    for name, nodes in sources.items():
        for node in nodes:
            _add(data, name, node, recipe)
    if unread:
        apart = frozenset(clip for name in ("validation", "test") for clip in data.splits[name].clips())
        lines = [
            LazyManifest(Path(node.manifest), choices, Root(*_place(node)), node.tasks, apart, own)
            for node, (own, choices) in ((node, _own(recipe, "train", node)) for node in unread)
        ]
        data.splits["train"] = LazySplit(lines, unread)
        data.notes += [note for manifest in lines for note in _look_through(manifest, recipe.data.policy)]
    tested = data.splits["test"]
    if written := sum(u.audio is None for u in tested.utterances):
        data.notes.append(f"{written:,} lines of text alone in test are not scored: evaluation.retention scores text")
        data.splits["test"] = tested.only(u.audio is not None for u in tested.utterances)
    _check_apart(data)
    data.notes += shared_speakers(data)
    return data


def _look_through(manifest: LazyManifest, policy: str) -> list[str]:
    """Notes on some lines of a lazy manifest; ManifestError where the policy is `error` and one of them is faulty."""
    faulty, faults, notes = manifest.look_through(_LOOKED_AT)
    looked = min(_LOOKED_AT, len(manifest))
    if faults and policy == "error":
        refuse(f"{manifest.path}: {faulty} of {looked} lines that were looked at are faulty:", faults)
    if faults:
        notes.append(
            f"{manifest.path}: {faulty} of {looked} lines are faulty and will be left out, such as {faults[0]}"
        )
    return notes


def _place(node: SourceConfig) -> tuple[Path, list[Path]]:
    """Where the manifest's paths start, and where else they may lead to."""
    return Path(node.root) if node.root else Path(node.manifest).parent, [Path(folder) for folder in node.allow]


def _own(recipe: Recipe, split: str, node: SourceConfig) -> tuple[Overrides | None, dict[str, Sequence[str]]]:
    """What the tasks of a manifest have of their own, and the labels that its lines may have."""
    scored = recipe.evaluation.task_overrides if split == "test" else {}
    nodes = {name: {**knobs, **scored.get(name, {})} for name, knobs in recipe.tasks.items()}
    own = Overrides.of(nodes, node.task_overrides, node.captions)
    return own, choices_of({**build_tasks(recipe), **(own.tasks if own else {})})


def _add(data: DataSplits, name: str, node: SourceConfig, recipe: Recipe) -> None:
    root, allow = _place(node)
    own, choices = _own(recipe, name, node)
    manifest = read_manifest(Path(node.manifest), choices=choices, policy=recipe.data.policy, root=root, allow=allow)
    split = data.splits[name]
    taken = {u.id for u in split.utterances}
    for utterance in manifest.utterances:
        if utterance.id in taken:
            told = f"id {utterance.id!r} is also in another manifest of {name!r}"
            raise ManifestError.at(node.manifest, "conflict", told)
        only = None if node.tasks is None else tuple(node.tasks)
        split.utterances.append(replace(utterance, only=only, overrides=own))
        split.weights.append(node.weight)
        if node.name is not None:
            split.names[utterance.id] = node.name
    data.faults += manifest.faults
    data.notes += manifest.notes


def _check_apart(data: DataSplits) -> None:
    """No clip on two sides: a metric on training data is worth nothing."""
    train = Recordings(data.splits["train"].clips())
    for name in ("validation", "test"):
        if both := train.shared(sorted(set(data.splits[name].clips()))):
            problem = f"{len(both)} clips are in both train and {name}, such as {both[0]}"
            raise ManifestError(problem, code="conflict", where=f"data.{name}")


def check_content_apart(data: DataSplits, digests: Mapping[Path, str]) -> None:
    """No sound on two sides, under whatever names; `digests` are of the samples of clips.

    Raises:
        ManifestError: a clip of the validation or test side holds what one of the training side holds.
    """
    train = {digests[clip]: clip for clip in data.splits["train"].clips() if clip in digests}
    for name in ("validation", "test"):
        clips = data.splits[name].clips()
        both = [(train[digests[clip]], clip) for clip in clips if digests.get(clip) in train]
        if both:
            told = f"{len(both)} clips of {name} hold the same samples as clips of train, such as "
            told += f"{both[0][1]} and {both[0][0]}: leave them out on one side"
            raise ManifestError(told, code="conflict", where=f"data.{name}")


def shared_speakers(data: DataSplits) -> list[str]:
    """A note for each side whose speakers are also in training: scores on it are not of unseen speakers."""
    train = data.splits["train"]
    if isinstance(train, LazySplit):
        return []  # who speaks there shows when lines are drawn
    known, notes = {u.speaker for u in train.utterances if u.speaker}, []
    for name in ("validation", "test"):
        found = Counter(u.speaker for u in data.splits[name].utterances if u.speaker in known)
        if found:
            such = ", ".join(f"{speaker} ({count:,} utterances)" for speaker, count in found.most_common(_NAMED))
            more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
            notes.append(f"{len(found):,} speakers of {name} are in train, too: {such}{more}")
    return notes
