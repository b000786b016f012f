"""MELD (Poria et al., ACL 2019): utterances of a television series with their emotions, as video clips."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from sottovoce.data.corpora import CORPORA
from sottovoce.data.corpora.files import Tree, find_file, read_table, write_clip
from sottovoce.data.corpora.published import CLIPS, Line, Published
from sottovoce.data.corpora.report import Report
from sottovoce.errors import MissingError

PARTS = {  # official split -> ours, utterances, the folder that its archive unpacks to
    "train": ("train", 9_989, "train_splits"),
    "dev": ("validation", 1_109, "dev_splits_complete"),
    "test": ("test", 2_610, "output_repeated_splits_test"),
}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
EMOTIONS = {
    "neutral": "neutral", "joy": "happy", "sadness": "sad", "anger": "angry", "surprise": "surprised",
    "disgust": "disgusted", "fear": "fearful",
}  # fmt: skip
SAMPLE_RATE = 16_000  # Hz


@CORPORA.register("meld")
class MELD(Published):
    """MELD: `{train,dev,test}_sent_emo.csv`, and the clips `dia<D>_utt<U>.mp4` in the folders of their archives.

    The sound of each clip is taken out by ffmpeg, once, as FLAC with one channel of 16 kHz.

    Args:
        source: the folder with the tables and the three folders of clips.
        ffmpeg: the program.
    """

    name = "meld"
    site = "github.com/declare-lab/MELD"
    expected: ClassVar[Mapping[str, int | None]] = {ours: count for ours, count, _ in PARTS.values()}
    suffixes = (".mp4",)

    def __init__(self, *, source: str, ffmpeg: str = "ffmpeg") -> None:
        super().__init__(source=source)
        self.ffmpeg = ffmpeg

    def lines(self, report: Report, tree: Tree) -> Iterator[Line]:
        program = shutil.which(self.ffmpeg)
        jobs: list[tuple[Path, Line]] = []
        for part, (split, _, folder) in PARTS.items():
            for number, row in enumerate(read_table(find_file(self.source, f"{part}_sent_emo.csv"), COLUMNS), 2):
                jobs += self._job(row, split, folder, f"{part}_sent_emo.csv:{number}", report, tree)
        todo = [(video, line.clip) for video, line in jobs if not line.clip.is_file()]
        if todo and program is None:
            raise MissingError(
                f"MELD's clips are mp4, and {self.ffmpeg!r} is not on this machine: install ffmpeg (or "
                "`pip install imageio-ffmpeg` and give its program as ffmpeg=...), and run the same command again",
                code="unavailable",
                where=self.ffmpeg,
            )
        with ThreadPoolExecutor(self._threads) as pool:
            failed = dict(zip([clip for _, clip in todo], pool.map(lambda job: _take(program, job), todo), strict=True))
        for video, line in jobs:
            if problem := failed.get(line.clip):
                report.add("damaged", f"{video.relative_to(self.source)}: {problem}")
            else:
                yield line

    def _job(
        self, row: Mapping[str, str], split: str, folder: str, where: str, report: Report, tree: Tree
    ) -> Iterator[tuple[Path, Line]]:
        name = f"dia{row['Dialogue_ID'].strip()}_utt{row['Utterance_ID'].strip()}"
        emotion = EMOTIONS.get(row["Emotion"].strip().lower())
        video = tree.find(f"{folder}/{name}.mp4")
        if emotion is None:
            report.add("unknown label", f"emotion {row['Emotion']!r} ({where})")
        elif video is None or video.parent.name != folder:
            report.add("missing", f"{folder}/{name}.mp4 ({where})")
        else:
            self._used.add(video)
            record = {
                "id": f"meld-{split}-{name}", "text": row["Utterance"].strip(),
                "speaker": f"meld-{row['Speaker'].strip()}", "labels": {"emotion": emotion},
            }  # fmt: skip
            yield video, Line(split, report.out / CLIPS / split / f"{name}.flac", record)


def _take(program: str | None, job: tuple[Path, Path]) -> str | None:
    """Write the sound of a video; why that was not possible, or None."""
    video, clip = job
    command = [str(program), "-nostdin", "-v", "error", "-i", str(video), "-vn", "-ac", "1"]
    done = subprocess.run([*command, "-ar", str(SAMPLE_RATE), "-f", "s16le", "pipe:1"], capture_output=True)
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return (said or [f"ffmpeg ended with {done.returncode} and wrote nothing"])[0].replace(str(video), video.name)
    write_clip(clip, np.frombuffer(done.stdout, "<i2"), SAMPLE_RATE)
    return None
