"""Pre-train the demo's Conformer on the demo world: CTC on words, no style labels.

    python -m sottovoce.demo pretrain-conformer

It stands in for the millions of hours of BEST-RQ that the paper's Conformer begins with (Kang et al., 2024, section
II-B), which leave it with words and sounds, and with no label of any emotion. Training voices and sentences are those
of the `train` split; the numbers it prints come from the validation split.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sottovoce.demo.corpus import speak_corpus
from sottovoce.demo.optimization import ctc_decode, ctc_loss, optimize, spec_augment
from sottovoce.demo.world import ADJECTIVES, NOUNS, PEOPLE, PLACES, TIMES, VERBS
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import SILENCE, log_mel, stack
from sottovoce.frames import Frames
from sottovoce.io import atomic_write

NUMBERS: dict[str, Any] = {"layers": 4, "width": 160, "feedforward": 480, "heads": 4, "kernel": 7}
WORDS = sorted({"the", "at", *VERBS, *ADJECTIVES, *NOUNS, *PLACES, *PEOPLE, *" ".join(TIMES).split()})


@dataclass(frozen=True)
class Plan:
    """How long, and on how much."""

    utterances: int = 9_000
    validation: int = 400
    steps: int = 2_400
    batch: int = 32
    lr: float = 2e-3
    seed: int = 5


class Corpus:
    """Log-mels (mel frames, 80) held in memory as float16, with their words."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.mels: list[Tensor] = []
        self.sentences: list[str] = []
        for spoken in speak_corpus(count, split, seed):
            clip = torch.from_numpy(spoken.audio)[None]
            self.mels.append(log_mel(clip, torch.tensor([clip.shape[1]])).x[0].half())
            self.sentences.append(spoken.sentence)

    def mel(self, rows: Sequence[int]) -> Frames:
        """(rows, mel frames, 80), padded with silence."""
        clips = [self.mels[row].float() for row in rows]
        return Frames(pad_sequence(clips, True, SILENCE), torch.tensor([len(clip) for clip in clips]))


def pretrain(out: Path, plan: Plan | None = None) -> dict[str, Any]:
    """Train, write the folder `conformer` (float16) and `conformer.json` into `out`; returns what the latter holds."""
    plan = plan or Plan()
    torch.manual_seed(plan.seed)
    encoder = ConformerEncoder(**NUMBERS, dropout=0.0)  # which takes a fifth of a step on CPU
    encoder.load()
    train, validation = Corpus("train", plan.utterances, plan.seed), Corpus("validation", plan.validation, plan.seed)
    head = nn.Linear(encoder.dim, len(WORDS) + 1)  # 0 is the blank
    draws = torch.Generator().manual_seed(plan.seed)
    card: dict[str, Any] = {"encoder": NUMBERS, "plan": asdict(plan)}

    def loss() -> Tensor:
        rows = torch.randint(len(train.mels), (plan.batch,), generator=draws).tolist()
        mel = train.mel(rows)
        spec_augment(mel.x.transpose(1, 2), draws)
        with torch.autocast("cpu", torch.bfloat16):  # faster where the CPU has the instructions
            hidden = encoder.train().contextualize(stack(mel))
        return ctc_loss(head(hidden.x.float()), hidden.lengths, [train.sentences[row].split() for row in rows], WORDS)

    @torch.no_grad()
    def score() -> dict[str, float]:
        encoder.eval()
        said: list[str] = []
        for rows in torch.split(torch.arange(len(validation.mels)), 100):
            hidden = encoder.contextualize(stack(validation.mel(rows.tolist())))
            said += ctc_decode(head(hidden.x), hidden.lengths, WORDS, " ")
        card["validation"] = {"wer": float(jiwer.wer(validation.sentences, said))}
        encoder.save(out / "conformer", torch.float16)
        atomic_write(out / "conformer.json", json.dumps(card, indent=2) + "\n")
        return dict(card["validation"])

    optimize([*encoder.parameters(), *head.parameters()], loss, score, steps=plan.steps, lr=plan.lr)
    return card
