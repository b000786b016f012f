"""Cascade: an emotion classifier on top of the frozen encoder writes its label, as text, before the speech.

Kang et al. (2024), section IV-B: the two baselines, message what they cannot hear.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.config.recipe import load
from sottovoce.config.sections import CascadeConfig
from sottovoce.data.audio import load_audio
from sottovoce.data.tasks import AttributeTask
from sottovoce.data.utterance import Utterance
from sottovoce.device import on_device
from sottovoce.encoders import ENCODERS, Encoder
from sottovoce.encoders.emotion_classifier import EmotionClassifier, LabelledClips, train_emotion_classifier
from sottovoce.encoders.tltr import TLTR
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.bundle import bundle_weights
from sottovoce.lightning_modules.run import Run
from sottovoce.progress import Progress
from sottovoce.training.run_folder import recipe_file

BATCH = 8  # clips that go through the encoder together
TASK = "emotion"  # whose labels are recognised
FILE = "ser.safetensors"  # the classifier, in the run's folder
PREFIX = "encoder."  # of its weights in a bundle
MOST_CLIPS = 50_000  # of a side: 1,500 numbers of 25 states each 0.8 s are some 400 kB a clip
_log = logging.getLogger(__name__)


def emotion_tags(run: Run, split: str) -> dict[str, str]:
    """Predicted emotion of each utterance of a split, by id; a run without a classifier trains one first."""
    with run.progress() as progress:
        encoder, classifier = _recognizer(run, progress)
        predicted: dict[str, str] = {}
        spoken = [u for u in run.data.splits[split].utterances if u.audio]
        with on_device(encoder), on_device(classifier.tltr):
            for part in _batches(spoken, progress, f"tagging {split}"):
                predicted |= zip((u.id for u in part), classifier.predict(_states(encoder, part)), strict=True)
    return predicted


def _recognizer(run: Run, progress: Progress) -> tuple[Encoder, EmotionClassifier]:
    """The classifier and the encoder that it listens with: of another cascade, or of this run, which may train it."""
    node = run.recipe.cascade
    assert node is not None  # the recipe has been checked
    if node.recognizer is None:
        return run.module.encoder, _classifier(run, node, progress)
    folder = Path(node.recognizer)
    other = load(recipe_file(folder))
    encoder: Encoder = ENCODERS.build(other.encoder)
    weights = bundle_weights(other.init_from) if other.init_from else {}
    trained = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    if trained:
        encoder.load_trained(trained)
    else:
        encoder.load()
    classifier = EmotionClassifier.load(folder / FILE, encoder.fingerprint())
    task = run.tasks[TASK]
    known = task.choices if isinstance(task, AttributeTask) else ()
    if strange := [name for name in classifier.labels if name not in known]:
        why = f"{folder} tells {strange[0]!r} apart, which is no choice of the task {TASK}"
        raise ConfigError.at("cascade.recognizer", "mismatch", why)
    return encoder.eval(), classifier


def _classifier(run: Run, node: CascadeConfig, progress: Progress) -> EmotionClassifier:
    file, encoder = run.recipe.folder / FILE, run.module.encoder
    fingerprint = encoder.fingerprint()
    if file.is_file():
        return EmotionClassifier.load(file, fingerprint)
    task = run.tasks[TASK]
    assert isinstance(task, AttributeTask)  # the recipe has been checked
    spoken = [u for u in run.data.splits["train"].utterances if u.audio]
    layers = len(_states(encoder, spoken[:1])) - 1
    torch.manual_seed(run.recipe.seed)
    tltr = TLTR(run.module.encoder.dim, layers, len(task.choices), pool=node.pool, width=node.width)
    classifier = EmotionClassifier(tltr.to(run.module.device), task.choices, fingerprint)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".states-", dir=file.parent) as folder:  # they may be larger than the memory
        most = node.most_clips or MOST_CLIPS
        train, validation = (
            _labelled(run, split, classifier, Path(folder) / split, most, progress) for split in ("train", "validation")
        )
        scores = train_emotion_classifier(
            classifier, train, validation, epochs=node.epochs, batch_size=node.batch_size, learning_rate=node.lr,
            weight_decay=node.weight_decay, patience=node.patience, seed=run.recipe.seed,
        )  # fmt: skip
    classifier.save(file)
    told = f"emotion classifier: balanced accuracy {max(scores):.3f} on the validation side"
    _log.info(told)
    return classifier


class StoredStates(Sequence[Tensor]):
    """Pooled states of clips, each (steps, layers, dim) in half precision, in a file that is read a clip at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shapes: list[torch.Size] = []
        self.starts = [0]  # of each clip, in numbers
        self._read: NDArray[np.float16] | None = None

    def extend(self, clips: Iterable[Tensor]) -> None:
        """Add clips behind those that are there."""
        with self.file.open("ab") as stream:
            for clip in clips:
                stream.write(clip.half().cpu().contiguous().numpy().tobytes())
                self.shapes.append(clip.shape)
                self.starts.append(self.starts[-1] + clip.numel())
        self._read = None

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, row: int) -> Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[Tensor]: ...
    def __getitem__(self, row: int | slice) -> Tensor | list[Tensor]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if self._read is None:
            self._read = np.memmap(self.file, np.float16, mode="r")
        at = range(len(self))[row]
        part = np.array(self._read[self.starts[at] : self.starts[at + 1]])  # a copy, so that the file can go
        return torch.from_numpy(part).view(self.shapes[at])


def _labelled(
    run: Run, split: str, classifier: EmotionClassifier, file: Path, most: int, progress: Progress
) -> LabelledClips:
    """Inputs of the classifier, in half precision, and labels, of at most so many utterances that have one."""
    known = [u for u in run.data.splits[split].utterances if u.audio and TASK in u.labels]
    if not known:
        raise ConfigError(f"cascade: no utterance of {split!r} has an {TASK}", code="empty", where=f"data.{split}")
    if len(known) > most:
        known = [known[row * len(known) // most] for row in range(most)]  # spread over the whole side
        _log.info(f"emotion classifier: {most:,} utterances of {split} (cascade.most_clips)")
    clips = StoredStates(file)
    for part in _batches(known, progress, f"encoding {split}"):
        clips.extend(classifier.tltr.pooled(_states(run.module.encoder, part)).rows())
    return LabelledClips(clips, [u.labels[TASK] for u in known])


@torch.no_grad()
def _states(encoder: Encoder, utterances: Sequence[Utterance]) -> list[Frames]:
    clips = [torch.from_numpy(load_audio(u.clip, encoder.sample_rate, silent=u.text == "")) for u in utterances]
    device = next(encoder.parameters()).device
    return encoder.eval().hidden_states(*Frames.pad(clips).to(device))


def _batches(utterances: Sequence[Utterance], progress: Progress, what: str) -> Iterator[Sequence[Utterance]]:
    for start in progress.track(range(0, len(utterances), BATCH), description=what, unit="batch"):
        yield utterances[start : start + BATCH]
