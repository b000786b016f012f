"""A recogniser of emotion that stands alone: a cascade writes its label before the words."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.encoders.tltr import TLTR
from sottovoce.errors import BundleError, ConfigError, MissingError, SottovoceError, nearest
from sottovoce.frames import Frames


class EmotionClassifier:
    """A TLTR whose classes have names, for the states of one encoder and no other.

    Args:
        tltr: the classifier.
        labels: names of its classes, in their order.
        encoder: fingerprint of the encoder whose states it reads (`Encoder.fingerprint`).

    Raises:
        ConfigError: the labels are not as many as the classes, or one is there twice.
    """

    def __init__(self, tltr: TLTR, labels: Sequence[str], encoder: str) -> None:
        if len(labels) != tltr.classes or len(set(labels)) != len(labels):
            raise ConfigError(f"emotion classifier: {tltr.classes} different labels are needed, found {list(labels)}")
        self.tltr, self.labels, self.encoder = tltr, tuple(labels), encoder

    @torch.no_grad()
    def predict(self, states: list[Frames]) -> list[str]:
        """The likeliest label of each clip, from the encoder's states, each (batch, frames, dim)."""
        self.tltr.eval()
        return [self.labels[at] for at in self.tltr(states).argmax(-1).tolist()]

    def save(self, file: Path) -> None:
        """Write weights, numbers, labels and the encoder's fingerprint as safetensors, whole or not at all."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.tltr.state_dict().items()}
        told = {"labels": json.dumps(self.labels), "dims": json.dumps(self.tltr.dims), "encoder": self.encoder}
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.tmp")
        save_file(weights, draft, metadata=told)
        os.replace(draft, file)

    @classmethod
    def load(cls, file: Path, encoder: str) -> "EmotionClassifier":
        """Read what `save` wrote, ready to predict.

        Args:
            file: the safetensors file.
            encoder: fingerprint of the encoder whose states it will be given.

        Raises:
            MissingError: there is no such file.
            BundleError: it is damaged, or was trained on another encoder.
        """
        if not file.is_file():
            raise MissingError(f"there is no file {file.absolute()}; `EmotionClassifier.save` writes one")
        try:
            ser = _read(file)
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{file}: damaged, or not written by `EmotionClassifier.save` ({type(error).__name__}: {error})"
            ) from None
        if ser.encoder != encoder:
            raise BundleError(
                f"{file} was trained on another encoder: fingerprint {ser.encoder[:12]} in the file, {encoder[:12]} "
                "here. Load the encoder of its training, or train it anew; to any other its weights make no sense"
            )
        return ser


class Labelled(NamedTuple):
    """Clips and their labels; `clips` may read from disk when it is asked for one.

    Args:
        clips: rows of `TLTR.pooled`, each (steps, layers, dim), in any floating-point dtype.
        labels: of the clips, in their order.
    """

    clips: Sequence[Tensor]
    labels: Sequence[str]


def train_emotion_classifier(
    ser: EmotionClassifier,
    train: Labelled,
    validation: Labelled,
    *,
    epochs: int = 30,
    batch_size: int = 48,
    learning_rate: float = 5e-5,
    weight_decay: float = 0.01,
    patience: int = 5,
    seed: int = 0,
) -> list[float]:
    """Teach a recogniser its labels, where its weights are, and leave it with those of its best epoch.

    Gong et al. (2023) for epochs, batch size and learning rate (1e-4 for their narrow one); cross-entropy, since a clip
    has one emotion. It starts from the weights it has: draw them after `torch.manual_seed` to get the same ones again.

    Args:
        ser: what is trained, in place.
        train: to learn from.
        validation: to choose the epoch by, and to stop by.
        epochs: at most.
        batch_size: clips in a step.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        patience: epochs without a better balanced accuracy, after which training stops.
        seed: of the order of the clips.

    Returns:
        The balanced accuracy on `validation` after each epoch, in [0, 1].

    Raises:
        SottovoceError: one of the sets is empty, has a label that `ser` does not know, or unequal columns.
    """
    targets, truth = _targets(train, ser.labels, "train"), _targets(validation, ser.labels, "validation")
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(ser.tltr.parameters(), learning_rate, weight_decay=weight_decay)
    scores: list[float] = []
    best = ser.tltr.state_dict()
    for _ in range(epochs):
        ser.tltr.train()
        shuffled = torch.randperm(len(targets), generator=order)
        for at, batch in _batches(ser.tltr, train.clips, shuffled, batch_size):
            loss = F.cross_entropy(ser.tltr.classify(batch), targets[at].to(batch.x.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        scores.append(balanced_accuracy(_answers(ser.tltr, validation.clips, batch_size), truth))
        if scores[-1] > max(scores[:-1], default=-1.0):
            best = {name: value.clone() for name, value in ser.tltr.state_dict().items()}
        elif len(scores) - 1 - scores.index(max(scores)) >= patience:
            break
    ser.tltr.load_state_dict(best)
    ser.tltr.eval()
    return scores


def balanced_accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Mean recall of the classes that occur in `truth`; both are (clips,) and hold class numbers."""
    recalls = [(predicted[truth == c] == c).double().mean() for c in sorted(set(truth.tolist()))]
    return float(torch.stack(recalls).mean())


@torch.no_grad()
def _answers(tltr: TLTR, clips: Sequence[Tensor], batch_size: int) -> Tensor:
    tltr.eval()
    batches = _batches(tltr, clips, torch.arange(len(clips)), batch_size)
    return torch.cat([tltr.classify(batch).argmax(-1).cpu() for _, batch in batches])


def _batches(tltr: TLTR, clips: Sequence[Tensor], order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Frames]]:
    """Numbers of clips and the clips themselves, in float32, padded, where the classifier is."""
    device = next(tltr.parameters()).device
    for start in range(0, len(order), batch_size):
        at = order[start : start + batch_size]
        yield at, Frames.pad([clips[number].float() for number in at.tolist()]).to(device)


def _targets(given: Labelled, labels: Sequence[str], name: str) -> Tensor:
    if len(given.clips) != len(given.labels) or not given.labels:
        raise SottovoceError(
            f"{name}: expected clips and as many labels, at least one; got {len(given.clips)} and {len(given.labels)}"
        )
    for label in given.labels:
        if label not in labels:
            raise SottovoceError(f"{name}: label {label!r} is none of the recogniser's.{nearest(label, labels)}")
    return torch.tensor([labels.index(label) for label in given.labels])


def _read(file: Path) -> EmotionClassifier:
    with safe_open(file, "pt") as stream:
        told = stream.metadata()
        # a copy, since the tensors of a mapped file change when somebody writes over the file
        weights = {name: stream.get_tensor(name).clone() for name in stream.keys()}
    with torch.device("meta"):  # random numbers would be drawn only to be thrown away
        tltr = TLTR(**json.loads(told["dims"]))
    tltr.load_state_dict(weights, assign=True)
    return EmotionClassifier(tltr.eval(), json.loads(told["labels"]), told["encoder"])
