"""Batches: the examples drawn from some utterances, and every clip that they need, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from undertone.data.examples import Draw, Example
from undertone.data.sampler import Rows
from undertone.data.utterance import Utterance
from undertone.types import Frames

Read = Callable[[Path], Tensor]  # an audio file -> (samples,) waveform or (frames, dim) encoder output
NOTHING = Frames(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long))  # the audio of a batch that is all text


@dataclass
class Batch:
    """Rows and the clips they speak of.

    `audio` holds each clip once: waveforms (clips, samples), or encoder outputs (clips, frames, dim) if they came from
    the cache. `clips` says which row of `audio` a file is. A batch that does not count keeps its process in step with
    the others, which have rows left.
    """

    examples: list[Example]
    clips: dict[Path, int]
    audio: Frames
    counts: bool = True

    def to(self, device: torch.device, **_: object) -> "Batch":
        """Lightning moves batches by this method."""
        return replace(self, audio=self.audio.to(device))


def collate(examples: list[Example], read: Read) -> Batch:
    """Read every clip that some slot of some row wants as speech."""
    clips: dict[Path, int] = {}
    for example in examples:
        if "speech" in example.sources.values():
            for path in [example.utterance.audio, *(turn.audio for turn in example.context if turn.audio)]:
                clips.setdefault(path, len(clips))
    rows = [read(path) for path in clips]
    return Batch(examples, clips, Frames.pad(rows) if rows else NOTHING)


class Examples(Dataset[Batch]):
    """Indexed by what `StageSampler` yields; `complete` gives an example its target, `read` gives a clip its sound."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        draw: Draw,
        draws: int,
        complete: Callable[[Example], Example],
        read: Read,
    ) -> None:
        self.utterances, self.draw, self.draws, self.complete, self.read = utterances, draw, draws, complete, read

    def examples(self, rows: Rows) -> list[Example]:
        """The examples of a batch, without their audio."""
        drawn = [self.draw(self.utterances[row], rows.epoch, k) for row in rows.numbers for k in range(self.draws)]
        return [example for example in drawn if example is not None]

    def __getitem__(self, rows: Rows) -> Batch:
        batch = collate([self.complete(example) for example in self.examples(rows)], self.read)
        return replace(batch, counts=rows.counts)
