"""Probes of the parts that a task goes through: the encoder's layers, what a slot hears of them, and its tokens."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sottovoce.data.examples import Example
from sottovoce.errors import SottovoceError
from sottovoce.evaluation.linear_probe import folds_by_speaker, most_folds, probe
from sottovoce.evaluation.metrics import Prediction, Score, balanced_accuracy, mean_measure
from sottovoce.evaluation.word_probe import CHANCE, word_probe
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # weak penalties are slow to converge
INNER_FOLDS = 3  # of the training speakers, to choose layer and penalty by
FOLDS = 5  # of the test side's speakers, where there is no training side
FEWEST = 8  # training rows, below which the test side is cross-validated
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Tested:
    """What a probe found in the rows that it was tested on, by row; and how well it did on its training speakers."""

    rows: Mapping[int, Any]
    validation: float


@dataclass
class Rows:
    """The rows of a task, training side first, and which of them are tested, once for each fold."""

    examples: list[Example]
    masks: list[Mask]
    how: str
    labels: list[str]  # empty: words are looked for
    meanings: NDArray[np.float64]  # (rows, llm_dim) of transcripts; empty: labels are looked for

    @property
    def speakers(self) -> list[str]:
        """Of each row; a row whose speaker nobody knows is one of its own."""
        return [e.utterance.speaker or f"unknown: {e.utterance.id}" for e in self.examples]

    def test(self, features: Array, mask: Mask, seed: int) -> Tested:
        """A probe of features (rows, dim) on one fold; raises SottovoceError where it cannot be made."""
        if self.labels:
            found = probe(
                features, self.labels, self.speakers, held_out=mask, strengths=STRENGTHS, inner_folds=INNER_FOLDS,
                seed=seed,
            )  # fmt: skip
            return Tested({int(p.id): p for p in found.predictions}, found.validation[0])
        texts = [e.target or "" for e in self.examples]
        words = word_probe(features, self.meanings, texts, self.speakers, mask.tolist())
        return Tested(dict(zip(np.flatnonzero(mask).tolist(), words.rank.tolist(), strict=True)), words.validation)

    def score(self, tested: Sequence[Tested]) -> Score:
        """Balanced accuracy of labels, or the mean rank of the true text, over all folds."""
        rows = {row: what for each in tested for row, what in each.rows.items()}
        if self.labels:
            predictions: list[Prediction] = [rows[row] for row in sorted(rows)]
            return balanced_accuracy(predictions)
        speakers = self.speakers
        return mean_measure([rows[r] for r in sorted(rows)], CHANCE, "", [speakers[r] for r in sorted(rows)]).score()


def rows_of(run: Run, train: Sequence[Example], test: Sequence[Example], labels: Mapping[str, str]) -> Rows:
    """Rows to probe: learned on the training side and tested on the other; or cross-validated where that is too small.

    `labels` are by utterance; none: words are looked for.
    """
    classes = {labels[e.utterance.id] for e in test} if labels else set()
    taught = Counter(labels.get(e.utterance.id, "") for e in train)
    enough = len(train) >= FEWEST and all(taught[name] > 1 for name in classes)
    examples = [*train, *test] if enough else list(test)
    found = Rows(examples, [], "", [labels[e.utterance.id] for e in examples] if labels else [], np.zeros((0, 0)))
    if not labels:
        found.meanings = _meanings(run, [e.target or "" for e in examples])
    if enough:
        found.masks, found.how = [np.arange(len(examples)) >= len(train)], "learned on training speakers"
        return found
    groups = np.asarray(found.labels or ["words"] * len(examples))
    folds = min(FOLDS, most_folds(groups, np.asarray(found.speakers)))
    if folds < 2:
        told = f"{len(train)} training rows by other speakers, and {len(set(found.speakers))} test speakers"
        raise SottovoceError(told, code="empty", where="speakers")
    for _, rows in folds_by_speaker(groups, np.asarray(found.speakers), folds, run.recipe.seed):
        found.masks.append(np.isin(np.arange(len(examples)), rows))
    found.how = f"cross-validated over {folds} folds of test speakers"
    return found


def part_probe(rows: Rows, features: Array, seed: int) -> Score:
    """A probe of features (rows, dim), over all folds."""
    return rows.score([rows.test(features, mask, seed) for mask in rows.masks])


def best_layer_probe(rows: Rows, layers: Mapping[int, Array], seed: int, progress: Progress) -> tuple[Score, list[int]]:
    """The layer that cross-validation on the training speakers finds best, tested; and which it was, for each fold."""
    found = {}
    for layer, features in progress.track(list(layers.items()), description="probing layers"):
        found[layer] = [rows.test(features, mask, seed) for mask in rows.masks]
    chosen = [max(found, key=lambda layer: found[layer][fold].validation) for fold in range(len(rows.masks))]
    return rows.score([found[layer][fold] for fold, layer in enumerate(chosen)]), chosen


@torch.no_grad()
def _meanings(run: Run, texts: Sequence[str]) -> NDArray[np.float64]:
    """(texts, llm_dim): the mean of the LLM's input embeddings of each text."""
    llm = run.module.llm
    table: Any = llm.model.get_input_embeddings().weight
    ids = [llm.chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    means = [table[torch.tensor(row, device=table.device)].float().mean(0).cpu().numpy() for row in ids]
    return np.stack(means).astype(np.float64)


def reading(run: Run, tokens: Sequence[Sequence[int]], examples: Sequence[Example]) -> Score:
    """Share of a slot's tokens whose nearest input embedding of the LLM is a token of the reference.

    The baseline is the same against the reference of the next utterance that says something else. An adapter need not
    speak in the LLM's own embeddings to be understood: a low share proves nothing.
    """
    tokenizer = run.module.llm.chat.tokenizer
    known = [set(_ids(tokenizer, e.target or "")) for e in examples]
    texts = [e.target for e in examples]
    shares, others = [], []
    for row, said in enumerate(tokens):
        other = next(_different(texts, row), row)
        shares.append(sum(token in known[row] for token in said) / max(1, len(said)))
        others.append(sum(token in known[other] for token in said) / max(1, len(said)))
    return mean_measure(shares, float(np.mean(others)), "", [e.utterance.speaker for e in examples]).score()


def _ids(tokenizer: Callable[..., Any], text: str) -> list[int]:
    """With and without a space before it, which begins a word in many vocabularies."""
    return [
        int(token) for said in (text, f" {text}") for token in tokenizer(said, add_special_tokens=False)["input_ids"]
    ]


def _different(texts: Sequence[str | None], row: int) -> Iterator[int]:
    following = (at % len(texts) for at in range(row + 1, row + len(texts)))
    return (at for at in following if texts[at] != texts[row])
