"""Pre-train the demo's Whisper encoder on the demo world: CTC on letters, and small heads for the style.

    python -m sottovoce.demo pretrain-encoder

Only the encoder is kept. Training voices and sentences are those of the `train` split; the numbers it prints come
from the validation split, whose voices and sentences are not in training.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
import whisper
from safetensors.torch import save
from torch import Tensor, nn
from whisper.model import AudioEncoder, ModelDimensions

from sottovoce.demo.corpus import Spoken, speak_corpus
from sottovoce.demo.optimization import ctc_decode, ctc_loss, optimize, spec_augment
from sottovoce.demo.voices import SAMPLE_RATE
from sottovoce.demo.world import CHOICES
from sottovoce.io import atomic_write

LETTERS = " abcdefghijklmnopqrstuvwxyz"
DIMS = ModelDimensions(
    n_mels=80, n_audio_ctx=200, n_audio_state=192, n_audio_head=4, n_audio_layer=4,
    n_vocab=51864, n_text_ctx=448, n_text_state=192, n_text_head=4, n_text_layer=4,
)  # fmt: skip
WINDOW = DIMS.n_audio_ctx * 320  # samples: 4 s


@dataclass(frozen=True)
class Phase:
    """Some steps on a corpus of its own; the rate rises and falls over `schedule` steps, of which `steps` are run."""

    utterances: int
    steps: int
    schedule: int
    lr: float
    seed: int
    batch: int = 24
    style_weight: float = 0.4


PHASES = (  # the second hears other utterances, with fresh heads: its schedule runs out, and the encoder settles
    Phase(utterances=10_000, steps=2_400, schedule=4_000, lr=1.5e-3, seed=7),
    Phase(utterances=9_000, steps=1_200, schedule=1_200, lr=8e-4, seed=8),
)


class PretrainingHeads(nn.Module):
    """Letters per frame, and one classifier of the mean frame for each attribute of the style."""

    def __init__(self, d_audio: int) -> None:
        super().__init__()
        self.letters = nn.Linear(d_audio, len(LETTERS) + 1)
        self.style = nn.ModuleDict({name: nn.Linear(d_audio, len(values)) for name, values in CHOICES.items()})


class Corpus:
    """Log-mel windows held in memory as float16, with their letters and labels."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.mels: list[Tensor] = []
        self.frames: list[int] = []
        self.letters: list[Tensor] = []
        self.labels: list[list[int]] = []
        self.sentences: list[str] = []
        for spoken in speak_corpus(count, split, seed):
            if spoken.seconds <= WINDOW / SAMPLE_RATE:
                self._add(spoken)

    def _add(self, spoken: Spoken) -> None:
        padded = torch.from_numpy(np.pad(spoken.audio, (0, WINDOW - len(spoken.audio))))
        self.mels.append(whisper.log_mel_spectrogram(padded, DIMS.n_mels).half())
        self.frames.append(min(DIMS.n_audio_ctx, -(-len(spoken.audio) // 320)))
        self.letters.append(torch.tensor([LETTERS.index(letter) + 1 for letter in spoken.sentence]))
        self.labels.append([CHOICES[name].index(value) for name, value in asdict(spoken.style).items()])
        self.sentences.append(spoken.sentence)

    def __len__(self) -> int:
        return len(self.mels)

    def mel(self, rows: list[int]) -> Tensor:
        return torch.stack([self.mels[row] for row in rows]).float()


def pretrain(out: Path, phases: tuple[Phase, ...] = PHASES) -> dict[str, float]:
    """Train, write `encoder.safetensors` and `encoder.json` into `out`, and return the validation scores."""
    torch.manual_seed(phases[0].seed)
    encoder = AudioEncoder(DIMS.n_mels, DIMS.n_audio_ctx, DIMS.n_audio_state, DIMS.n_audio_head, DIMS.n_audio_layer)
    scores: dict[str, float] = {}
    for phase in phases:
        scores = _train(encoder, phase, out)
        card = {"dims": asdict(DIMS), "phases": [asdict(phase) for phase in phases], "validation": scores}
        atomic_write(out / "encoder.json", json.dumps(card, indent=2) + "\n")
        encoder.half().float()  # what was written is what the next phase starts from
    return scores


def _train(encoder: AudioEncoder, phase: Phase, out: Path) -> dict[str, float]:
    torch.manual_seed(phase.seed)
    train, validation = Corpus("train", phase.utterances, phase.seed), Corpus("validation", 600, phase.seed)
    heads = PretrainingHeads(DIMS.n_audio_state)
    draws = torch.Generator().manual_seed(phase.seed)

    def loss() -> Tensor:
        rows = torch.randint(len(train), (phase.batch,), generator=draws).tolist()
        return _loss(encoder, heads, train, rows, spec_augment(train.mel(rows), draws), phase.style_weight)

    def score() -> dict[str, float]:
        scores = _score(encoder, heads, validation)
        weights = {f"encoder.{name}": value.half().contiguous() for name, value in encoder.state_dict().items()}
        atomic_write(out / "encoder.safetensors", save(weights, {"dims": json.dumps(asdict(DIMS))}))
        return scores

    parameters = [*encoder.parameters(), *heads.parameters()]
    return optimize(parameters, loss, score, steps=phase.steps, lr=phase.lr, schedule=phase.schedule)


def _loss(
    encoder: nn.Module, heads: PretrainingHeads, corpus: Corpus, rows: list[int], mel: Tensor, style_weight: float
) -> Tensor:
    """CTC of the letters, plus the weighted cross-entropies of the style, for (batch, mels, frames) log-mels."""
    with torch.autocast("cpu", torch.bfloat16):  # 1.5 times faster where the CPU has the instructions
        hidden = encoder(mel)
    hidden = hidden.float()
    frames = torch.tensor([corpus.frames[row] for row in rows])
    ctc = ctc_loss(heads.letters(hidden), frames, [corpus.letters[row] for row in rows])
    labels = torch.tensor([corpus.labels[row] for row in rows])
    pooled = _mean(hidden, frames)
    style = [nn.functional.cross_entropy(head(pooled), labels[:, i]) for i, head in enumerate(heads.style.values())]
    return ctc + style_weight * torch.stack(style).sum()


def _mean(hidden: Tensor, frames: Tensor) -> Tensor:
    """Mean over the first `frames` frames: (batch, frames, dim) to (batch, dim)."""
    real = (torch.arange(hidden.shape[1]) < frames[:, None])[..., None]
    return (hidden * real).sum(1) / frames[:, None]


@torch.no_grad()
def _score(encoder: nn.Module, heads: PretrainingHeads, corpus: Corpus) -> dict[str, float]:
    """Word error rate, and the accuracy of each attribute of the style."""
    encoder.eval()
    hypotheses, right = [], torch.zeros(len(CHOICES))
    for start in range(0, len(corpus), 100):
        rows = list(range(start, min(start + 100, len(corpus))))
        hidden = encoder(corpus.mel(rows))
        frames = torch.tensor([corpus.frames[row] for row in rows])
        decoded = ctc_decode(heads.letters(hidden), frames)
        hypotheses += ["".join(LETTERS[symbol - 1] for symbol in symbols) for symbols in decoded]
        pooled, labels = _mean(hidden, frames), torch.tensor([corpus.labels[row] for row in rows])
        for i, head in enumerate(heads.style.values()):
            right[i] += (head(pooled).argmax(-1) == labels[:, i]).sum()
    encoder.train()
    accuracy = dict(zip(CHOICES, (right / len(corpus)).tolist(), strict=True))
    return {"wer": float(jiwer.wer(corpus.sentences, hypotheses)), **accuracy}
