"""Speech emotion recognition on a frozen encoder: a TL-TR classifier, its training and its file."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from sottovoce.encoders.tltr import TLTR
from sottovoce.errors import BundleError, ConfigError, MissingError, SottovoceError, nearest
from sottovoce.frames import Frames
from sottovoce.tensor_files import read_metadata, read_tensors, write_tensors


class EmotionClassifier:
    """A TLTR whose classes have names, for the states of one encoder and no other.

    Args:
        tltr: the classifier.
        labels: names of its classes, in their order, each different.
        encoder: fingerprint of the encoder whose states it reads (`Encoder.fingerprint`).
    """

    def __init__(self, tltr: TLTR, labels: Sequence[str], encoder: str) -> None:
        if len(labels) != tltr.classes or len(set(labels)) != len(labels):
            raise ConfigError.at("labels", "bad-value", f"expected {tltr.classes} different ones, got {list(labels)}")
        self.tltr, self.labels, self.encoder = tltr, tuple(labels), encoder

    @torch.no_grad()
    def predict(self, states: list[Frames]) -> list[str]:
        """The likeliest label of each clip, from the encoder's states, each (batch, frames, dim)."""
        self.tltr.eval()
        return [self.labels[label] for label in self.tltr(states).argmax(-1).tolist()]

    def save(self, file: Path) -> None:
        """Write weights, dims, labels and the encoder's fingerprint as safetensors."""
        metadata = {"labels": json.dumps(self.labels), "dims": json.dumps(self.tltr.dims), "encoder": self.encoder}
        write_tensors(file, self.tltr.state_dict(), metadata)

    @classmethod
    def load(cls, file: Path, encoder: str) -> "EmotionClassifier":
        """Read what `save` wrote, ready to predict from the states of the encoder with this fingerprint.

        Raises:
            MissingError: there is no such file.
            BundleError: it is damaged, or was trained on another encoder.
        """
        if not file.is_file():
            raise MissingError(f"there is no file {file.absolute()}; `EmotionClassifier.save` writes one", where=file)
        try:
            metadata = read_metadata(file)
            with torch.device("meta"):  # random numbers would be drawn only to be thrown away
                tltr = TLTR(**json.loads(metadata["dims"]))
            tltr.load_state_dict(read_tensors(file, dtype=torch.float32), assign=True)
            classifier = cls(tltr.eval(), json.loads(metadata["labels"]), metadata["encoder"])
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            why = f"damaged, or not written by `EmotionClassifier.save` ({type(error).__name__}: {error})"
            raise BundleError.at(file, "damaged", why) from None
        if classifier.encoder != encoder:
            why = f"was trained on another encoder: fingerprint {classifier.encoder[:12]} in the file, "
            why += f"{encoder[:12]} here. Load the encoder of its training, or train it anew"
            raise BundleError.at(file, "mismatch", why)
        return classifier


class LabelledClips(NamedTuple):
    """Pooled encoder states and labels of clips; `clips` may read from disk when it is indexed."""

    clips: Sequence[Tensor]  # rows of `TLTR.pooled`, each (steps, layers, dim), in any floating-point dtype
    labels: Sequence[str]  # of the clips, in their order


def train_emotion_classifier(
    classifier: EmotionClassifier, train: LabelledClips, validation: LabelledClips, *, epochs: int = 30,
    batch_size: int = 48, learning_rate: float = 5e-5, weight_decay: float = 0.01, patience: int = 5, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Train a classifier in place by cross-entropy and AdamW, and leave it with the weights of its best epoch.

    Gong et al. (2023) for epochs, batch size and learning rate (1e-4 for their narrow form). It starts from the weights
    it has, on their device: draw them after `torch.manual_seed` to get the same ones again. The order of the clips
    depends on `seed`. After `patience` epochs without a better balanced accuracy on `validation` training stops.

    Returns:
        The balanced accuracy on `validation` after each epoch, in [0, 1].

    Raises:
        SottovoceError: one of the sets is empty, has an unknown label, or unequal columns.
    """
    tltr = classifier.tltr
    targets, truth = _targets(train, classifier.labels, "train"), _targets(validation, classifier.labels, "validation")
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(tltr.parameters(), learning_rate, weight_decay=weight_decay)
    scores: list[float] = []
    best = tltr.state_dict()
    for _ in range(epochs):
        tltr.train()
        shuffled = torch.randperm(len(targets), generator=order)
        for rows, batch in _batches(tltr, train.clips, shuffled, batch_size):
            loss = F.cross_entropy(tltr.classify(batch), targets[rows].to(batch.x.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        scores.append(balanced_accuracy(_predictions(tltr, validation.clips, batch_size), truth))
        if scores[-1] > max(scores[:-1], default=-1.0):
            best = {name: value.clone() for name, value in tltr.state_dict().items()}
        elif len(scores) - 1 - scores.index(max(scores)) >= patience:
            break
    tltr.load_state_dict(best)
    tltr.eval()
    return scores


def balanced_accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Mean recall of the classes that occur in `truth`; both are (clips,) and hold class numbers."""
    recalls = [(predicted[truth == c] == c).double().mean() for c in sorted(set(truth.tolist()))]
    return float(torch.stack(recalls).mean())


@torch.no_grad()
def _predictions(tltr: TLTR, clips: Sequence[Tensor], batch_size: int) -> Tensor:
    tltr.eval()
    batches = _batches(tltr, clips, torch.arange(len(clips)), batch_size)
    return torch.cat([tltr.classify(batch).argmax(-1).cpu() for _, batch in batches])


def _batches(tltr: TLTR, clips: Sequence[Tensor], order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Frames]]:
    """Indices of clips, (batch,), and the clips, in float32, padded, on the classifier's device."""
    device = next(tltr.parameters()).device
    for rows in torch.split(order, batch_size):
        yield rows, Frames.pad([clips[row].float() for row in rows.tolist()]).to(device)


def _targets(given: LabelledClips, labels: Sequence[str], name: str) -> Tensor:
    if len(given.clips) != len(given.labels) or not given.labels:
        counts = f"got {len(given.clips)} and {len(given.labels)}"
        raise SottovoceError.at(name, "bad-value", f"expected clips and as many labels, at least one; {counts}")
    for label in given.labels:
        if label not in labels:
            why = f"label {label!r} is none of the classifier's.{nearest(label, labels)}"
            raise SottovoceError.at(name, "unknown-name", why)
    return torch.tensor([labels.index(label) for label in given.labels])
