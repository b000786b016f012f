"""The batches of a stage: by a number of utterances, or by a budget of audio seconds or of the LLM's tokens."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from sottovoce.config.sections import BATCH_KEYS, StageConfig
from sottovoce.data.batch_sampler import BatchSampler
from sottovoce.data.utterance import Utterance
from sottovoce.training.stage_rows import StageRows

SHORTEST = 1.0  # seconds that a row counts at least: the LLM reads its words, too, however short the clip


def stage_batches(
    node: StageConfig, rows: StageRows, count: Callable[[Iterable[Utterance]], Sequence[int]], seed: int,
    ranks: int, *, training: bool,
) -> BatchSampler:  # fmt: skip
    """All batches of a stage in training, or of a validation; `count` gives the tokens of rows, if they are asked for.

    An utterance from which several tasks are drawn counts as often. Raises ManifestError where no row is drawn.
    """
    lengths: ArrayLike = rows.seconds
    if node.budget is not None:
        each = (rows.utterances[row] for row in range(len(rows.seconds)))  # a data set of PyTorch's has no iterator
        counted = np.maximum(rows.seconds, SHORTEST) if node.batch_seconds else np.maximum(count(each), 1)
        lengths = counted * (node.draws if training else 1)
    return BatchSampler(
        lengths, rows.weights, node.batch_size, node.epochs if training else 1, seed, ranks=ranks, groups=rows.groups,
        accumulate=node.accumulate_grad_batches if training else 1, budget=node.budget,
    )  # fmt: skip


def step_size(node: StageConfig, batches: int) -> tuple[str, float]:
    """The key that says how large a batch is, and its value for a step of so many batches in all processes."""
    key = next(key for key in BATCH_KEYS if getattr(node, key) is not None)
    return key, getattr(node, key) * batches
