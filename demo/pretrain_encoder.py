"""Pre-train the demo's Whisper encoder on the demo world: CTC on letters, and small heads for the style.

    python -m sottovoce.demo pretrain-encoder

Only the encoder is kept. Training voices and sentences are those of the `train` split; the numbers it prints come
from the validation split, whose voices and sentences are not in training.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import torch
import whisper
from torch import Tensor, nn
from whisper.model import AudioEncoder, ModelDimensions

from sottovoce.demo.corpus import speak_corpus
from sottovoce.demo.optimization import ctc_decode, ctc_loss, optimize, spec_augment
from sottovoce.demo.world import CHOICES
from sottovoce.io import atomic_write
from sottovoce.tensor_files import write_tensors

LETTERS = " abcdefghijklmnopqrstuvwxyz"
DIMS = ModelDimensions(
    n_mels=80, n_audio_ctx=200, n_audio_state=192, n_audio_head=4, n_audio_layer=4,
    n_vocab=51864, n_text_ctx=448, n_text_state=192, n_text_head=4, n_text_layer=4,
)  # fmt: skip
FRAME = 320  # samples
WINDOW = DIMS.n_audio_ctx * FRAME  # 4 s


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

    def forward(self, hidden: Tensor, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(batch, frames, dim), of which the first `frames` count, to (batch, frames, letters) and (batch, values)."""
        real = (torch.arange(hidden.shape[1]) < frames[:, None])[..., None]
        mean = (hidden * real).sum(1) / frames[:, None]
        return self.letters(hidden), [head(mean) for head in self.style.values()]


class Corpus:
    """Log-mel windows held in memory as float16, with their words, lengths and labels."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.mels: list[Tensor] = []
        self.sentences: list[str] = []
        frames, labels = list[int](), list[list[int]]()
        for spoken in speak_corpus(count, split, seed):
            if (rest := WINDOW - len(spoken.audio)) >= 0:
                self.mels.append(whisper.log_mel_spectrogram(spoken.audio, DIMS.n_mels, rest).half())
                self.sentences.append(spoken.sentence)
                frames.append(-(-len(spoken.audio) // FRAME))
                labels.append([CHOICES[name].index(value) for name, value in asdict(spoken.style).items()])
        self.frames, self.labels = torch.tensor(frames), torch.tensor(labels)

    def mel(self, rows: Sequence[int]) -> Tensor:
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
        """CTC of the letters, plus the weighted cross-entropies of the style."""
        rows = torch.randint(len(train.mels), (phase.batch,), generator=draws).tolist()
        mel = spec_augment(train.mel(rows), draws)
        with torch.autocast("cpu", torch.bfloat16):  # 1.5 times faster where the CPU has the instructions
            hidden = encoder(mel)
        letters, styles = heads(hidden.float(), train.frames[rows])
        ctc = ctc_loss(letters, train.frames[rows], [train.sentences[row] for row in rows], LETTERS)
        losses = [nn.functional.cross_entropy(*pair) for pair in zip(styles, train.labels[rows].T, strict=True)]
        return ctc + phase.style_weight * torch.stack(losses).sum()

    @torch.no_grad()
    def score() -> dict[str, float]:
        """Write the encoder; return the word error rate, and the accuracy of each attribute of the style."""
        encoder.eval()
        said, right = list[str](), torch.zeros(len(CHOICES))
        for rows in torch.split(torch.arange(len(validation.mels)), 100):
            letters, styles = heads(encoder(validation.mel(rows.tolist())), validation.frames[rows])
            said += ctc_decode(letters, validation.frames[rows], LETTERS)
            right += (torch.stack([values.argmax(-1) for values in styles], 1) == validation.labels[rows]).sum(0)
        encoder.train()
        weights = {f"encoder.{name}": value.half() for name, value in encoder.state_dict().items()}
        write_tensors(out / "encoder.safetensors", weights, {"dims": json.dumps(asdict(DIMS))})
        accuracy = dict(zip(CHOICES, (right / len(validation.mels)).tolist(), strict=True))
        return {"wer": float(jiwer.wer(validation.sentences, said)), **accuracy}

    parameters = [*encoder.parameters(), *heads.parameters()]
    return optimize(parameters, loss, score, steps=phase.steps, lr=phase.lr, schedule=phase.schedule)
