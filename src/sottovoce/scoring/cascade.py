"""Cascade: an emotion classifier on top of the frozen encoder writes its label, as text, before the speech.

Kang et al. (2024), section IV-B: the two baselines, message what they cannot hear.
"""

from collections.abc import Iterator, Sequence

import torch
from rich.progress import Progress
from torch import Tensor

from sottovoce.data.audio import load_audio
from sottovoce.data.tasks import AttributeTask
from sottovoce.data.utterance import Utterance
from sottovoce.encoders.emotion_classifier import EmotionClassifier, LabelledClips, train_emotion_classifier
from sottovoce.encoders.tltr import TLTR
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.run import Run

BATCH = 8  # clips that go through the encoder together
TASK = "emotion"  # whose labels are recognised


def emotion_tags(run: Run, split: str) -> dict[str, str]:
    """Predicted emotion of each utterance of a split, by id; a run without a classifier trains one first."""
    with run.progress() as progress:
        classifier = _classifier(run, progress)
        predicted: dict[str, str] = {}
        for part in _batches(run.data.splits[split].utterances, progress, f"tagging {split}"):
            predicted |= zip((u.id for u in part), classifier.predict(_states(run, part)), strict=True)
    return predicted


def _classifier(run: Run, progress: Progress) -> EmotionClassifier:
    file, fingerprint = run.recipe.folder / "ser.safetensors", run.module.encoder.fingerprint()
    if file.is_file():
        return EmotionClassifier.load(file, fingerprint)
    node, task = run.recipe.cascade, run.tasks[TASK]
    assert node is not None and isinstance(task, AttributeTask)  # the recipe has been checked
    spoken = [u for u in run.data.splits["train"].utterances if u.audio]
    layers = len(_states(run, spoken[:1])) - 1
    torch.manual_seed(run.recipe.seed)
    tltr = TLTR(run.module.encoder.dim, layers, len(task.choices), pool=node.pool, width=node.width)
    classifier = EmotionClassifier(tltr.to(run.module.device), task.choices, fingerprint)
    train, validation = (_labelled(run, split, classifier, progress) for split in ("train", "validation"))
    scores = train_emotion_classifier(
        classifier, train, validation, epochs=node.epochs, batch_size=node.batch_size, learning_rate=node.lr,
        weight_decay=node.weight_decay, patience=node.patience, seed=run.recipe.seed,
    )  # fmt: skip
    classifier.save(file)
    told = f"emotion classifier: balanced accuracy {max(scores):.3f} on the validation side"
    run.console.print(told, highlight=False)
    return classifier


def _labelled(run: Run, split: str, classifier: EmotionClassifier, progress: Progress) -> LabelledClips:
    """Inputs of the classifier, in half precision, and labels, of the utterances that have one."""
    known = [u for u in run.data.splits[split].utterances if TASK in u.labels]
    if not known:
        raise ConfigError(f"cascade: no utterance of {split!r} has an {TASK}", code="empty", where=f"data.{split}")
    clips: list[Tensor] = []
    for part in _batches(known, progress, f"encoding {split}"):
        clips += [row.half().cpu() for row in classifier.tltr.pooled(_states(run, part)).rows()]
    return LabelledClips(clips, [u.labels[TASK] for u in known])


@torch.no_grad()
def _states(run: Run, utterances: Sequence[Utterance]) -> list[Frames]:
    encoder = run.module.encoder.eval()
    clips = [torch.from_numpy(load_audio(u.clip, encoder.sample_rate, silent=u.text == "")) for u in utterances]
    return encoder.hidden_states(*Frames.pad(clips).to(run.module.device))


def _batches(utterances: Sequence[Utterance], progress: Progress, what: str) -> Iterator[Sequence[Utterance]]:
    for start in progress.track(range(0, len(utterances), BATCH), description=what):
        yield utterances[start : start + BATCH]
