"""Labels of paired utterances against the values that the auxiliary head tells apart, before anything trains."""

from collections.abc import Iterator
from pathlib import Path

from sottovoce.config.recipe import Recipe
from sottovoce.data.manifest import line_fault, read_lines, refuse
from sottovoce.data.utterance import Utterance
from sottovoce.errors import ManifestError, nearest
from sottovoce.training.splits import DataSplits, LazySplit

SIDES = ("train", "validation")  # the head is gone when the test side is answered


def check_head_labels(recipe: Recipe, data: DataSplits) -> None:
    """See that the head knows the category and label of every paired utterance that it learns from.

    With `data.policy: skip` the others are left out. Lines that are read when they are drawn are checked then.

    Raises:
        ManifestError: it does not know some; by file and line where manifests are named.
    """
    head = recipe.auxiliary_head
    for side in SIDES if head else ():
        split = data.splits[side]
        if head is None or isinstance(split, LazySplit):
            continue
        told = {u.id: fault for u in split.utterances if (fault := _fault(u, head.categories))}
        faults = list(_placed(told, [Path(node.manifest) for node in getattr(recipe.data, side) if node.manifest]))
        if faults and recipe.data.policy == "error":
            head_line = f"{len(faults)} utterances of {side!r} have a label that auxiliary_head.categories lacks"
            refuse(f"{head_line} (data.policy=skip leaves them out):", faults)
        data.faults += faults
        data.splits[side] = split.only(u.id not in told for u in split.utterances)


def _fault(utterance: Utterance, categories: dict[str, list[str]]) -> ManifestError | None:
    name, key = utterance.category, "auxiliary_head.categories"
    if name is None:
        return None
    if name not in categories:
        return ManifestError(f"{key} has no category {name!r}.{nearest(name, categories)}", code="unknown-name")
    label = utterance.labels.get(name, "")
    if label not in categories[name]:
        return ManifestError(f"{key}.{name} has no {label!r}.{nearest(label, categories[name])}", code="unknown-name")
    return None


def _placed(told: dict[str, ManifestError], manifests: list[Path]) -> Iterator[ManifestError]:
    """Each fault with its file and line, for which the manifests are read again; without where a corpus made them."""
    left = dict(told)
    for manifest in manifests if told else ():
        for number, record in read_lines(manifest):
            if isinstance(record, dict) and (fault := left.pop(str(record.get("id")), None)):
                yield line_fault(manifest, number, record, fault)
    for name, fault in left.items():
        yield ManifestError.at(name, fault.code, fault)
