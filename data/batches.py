"""Batches: the examples of some utterances, and every clip that they need, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sottovoce.data.batch_sampler import Rows
from sottovoce.data.examples import Draw, Example
from sottovoce.data.utterance import Utterance
from sottovoce.errors import AudioError, ManifestError
from sottovoce.frames import Frames

Read = Callable[[Path], Tensor]  # an audio file -> (samples,) waveform or (frames, dim) encoder output
STAND_INS = 64  # utterances that are tried in the place of a batch of which none can be used
NOTHING = Frames(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long))  # the audio of a batch that is all text


@dataclass
class Batch:
    """Rows and the clips they speak of; `skipped` names what of its utterances cannot be used.

    `audio` holds each clip once: waveforms (clips, samples), or encoder outputs (clips, frames, dim) if they came from
    the cache. `clips` says which row of `audio` a file is. A batch that does not count keeps its process in step with
    the others, which have rows left.
    """

    examples: list[Example]
    clips: dict[Path, int]
    audio: Frames
    skipped: list[str] = field(default_factory=list)
    counts: bool = True

    @property
    def ids(self) -> list[str]:
        """The utterance of each row."""
        return [example.utterance.id for example in self.examples]

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
    """Indexed by what `BatchSampler` yields; `complete` gives an example its target, `read` gives a clip its sound."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        draw: Draw,
        draws: int,
        complete: Callable[[Example], Example] | None,
        read: Read,
    ) -> None:
        self.utterances, self.draw, self.draws, self.read = utterances, draw, draws, read
        self._complete = complete

    def examples(self, rows: Rows) -> list[Example]:
        """The examples of a batch, without their audio."""
        drawn = [self.draw(self.utterances[row], rows.epoch, k) for row in rows.numbers for k in range(self.draws)]
        return [example for example in drawn if example is not None]

    def complete(self, examples: list[Example]) -> list[Example]:
        """The examples with their targets; None completes them where every task has its own."""
        return [self._complete(example) for example in examples] if self._complete else examples

    def __getitem__(self, rows: Rows) -> Batch:
        batch = collate(self.complete(self.examples(rows)), self.read)
        return replace(batch, counts=rows.counts)


class LazyExamples(Examples):
    """Examples of utterances that nobody has checked before: a line or a clip may turn out to be faulty.

    With `skip` those are left out of their batch and named in it; else the first one ends the run.
    """

    def __init__(self, *arguments: Any, skip: bool) -> None:
        super().__init__(*arguments)
        self.skip = skip

    def __getitem__(self, rows: Rows) -> Batch:
        kept: list[Example] = []
        clips: dict[Path, Tensor] = {}
        skipped: list[str] = []
        for number in rows.numbers:
            try:
                drawn = self.complete(self.examples(Rows(rows.epoch, [number])))
                part = collate(drawn, self.read)
            except (ManifestError, AudioError) as error:
                if not self.skip:
                    raise
                skipped.append(str(error))
                continue
            kept += drawn
            clips |= zip(part.clips, part.audio.rows(), strict=True)
        if not kept:
            return replace(self._stand_in(rows, skipped), skipped=skipped)
        return replace(collate(kept, clips.__getitem__), skipped=skipped, counts=rows.counts)

    def _stand_in(self, rows: Rows, skipped: list[str]) -> Batch:
        """The next utterance that can be used, in a batch that does not count: of the one that was wanted none can."""
        first = rows.numbers[-1] + 1
        for number in range(first, first + STAND_INS):
            try:
                one = self.examples(Rows(rows.epoch, [number % len(self.utterances)]))
                if drawn := self.complete(one):
                    return replace(collate(drawn, self.read), counts=False)
            except (ManifestError, AudioError):
                pass  # it is named when its own batch comes
        why = f", such as: {skipped[0]}" if skipped else ": no task of the stage can use what they hold"
        raise ManifestError(
            f"of the {len(rows.numbers)} utterances of a batch and of {STAND_INS} after them not one can be used{why}",
            code="empty",
            where="data.train",
        )
