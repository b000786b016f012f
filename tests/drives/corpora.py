"""Published corpora in miniature, in their official layouts; no two clips sound alike, and films are real films."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import soundfile
from numpy.typing import NDArray

from tests.helpers import corpora
from tests.helpers.av_files import AV_FORMATS, write_av

STYLES = ("default", "happy", "sad", "confused", "whisper", "laughing")  # of Expresso, in this order
SPEAKERS = ("ex01", "ex02", "ex03", "ex04")
CHILDREN = 6  # of the folder of real recordings


def librispeech(source: Path) -> None:
    corpora.librispeech(source)
    for at, part in enumerate(("train-clean-100", "train-other-500")):  # more than two clips to learn from
        folder = source / part / f"{at}/8"
        names = [f"{at}-8-000{i}" for i in range(4)]
        corpora.text(folder / f"{at}-8.trans.txt", *(f"{name} THEY SOLD {i} BOOKS" for i, name in enumerate(names)))
        for name in names:
            corpora.tone(folder / f"{name}.flac")


def textrolspeech(source: Path) -> None:
    corpora.table(source / "caption/random_train.csv", corpora.textrolspeech(source))


def meld(source: Path) -> None:
    source.mkdir(parents=True)
    corpora.meld(source)
    for number, film in enumerate(sorted(source.rglob("*.mp4"))):
        write_av(film, AV_FORMATS["m4a"], _voice(film.name + str(film.parent), 0.5 + 0.02 * number, 16_000), 16_000)


def styletalk(source: Path) -> None:
    evaluated = [corpora.style_row(f"tale_{i}", number) for i in range(3) for number in (0, 1)]
    corpora.styletalk(source, evaluated, dialogues=10)


def dailytalk(source: Path) -> None:
    corpora.dailytalk(source, {"0": [1, 0, 1, 0], "4": [0, 1, 0], "23": [0, 1]})  # 23: the authors' validation


def expresso(source: Path) -> None:
    """Four speakers read two sentences in each of some styles; two of them talk."""
    said, splits = [], {"train": ["# head"], "dev": ["# head"], "test": ["# head"]}
    for speaker in SPEAKERS:
        for style in STYLES:
            for number, split in (("1", "train"), ("2", "dev"), ("3", "test")):
                name = f"{speaker}_{style}_0000{number}"
                corpora.tone(source / "audio_48khz/read" / speaker / style / "base" / f"{name}.wav")
                said.append(f"{name}\tGood day, number {number}.")
                splits[split].append(name)
    dialogue = "ex01-ex02_happy_001"
    corpora.tone(source / f"audio_48khz/conversational/ex01-ex02/happy/{dialogue}.wav", 4.0, channels=2)
    splits["train"].append(dialogue)
    corpora.text(source / "read_transcriptions.txt", *said)
    corpora.text(
        source / "VAD_segments.txt", "#VAD", f"{dialogue}/channel1\t(0.0, 1.0)", f"{dialogue}/channel2\t(2.0, 3.0)"
    )
    for name, lines in splits.items():
        corpora.text(source / f"splits/{name}.txt", *lines)


def voicebench(source: Path) -> None:
    source.mkdir(parents=True)
    corpora.voicebench(source)


def speechocean762(source: Path) -> None:
    corpora.speechocean762(source, speakers=12, each=1, seconds=2.0)  # so that CTC can align the words


def crema_d(source: Path) -> None:
    corpora.crema_d(source, actors=5, sentences=("DFA",))


def texts(file: Path) -> None:
    corpora.text(file, "We left the old umbrella.", "He bought a book.")


def wavs(source: Path) -> None:
    """What docs/data_formats.md calls `wavs`: clips of 15 speakers and a table of them."""
    lines = ["file_name,text,speaker,age_group"]
    for number in range(1, 31):
        corpora.tone(source / f"a{number}.wav")
        lines.append(f"a{number}.wav,we call it bear,s{number // 2},{('child', 'adult')[number // 2 % 2]}")
    (source / "metadata.csv").write_text("\n".join(lines))


CORPORA: dict[str, Callable[[Path], None]] = {
    "LibriSpeech": librispeech, "TextrolSpeech": textrolspeech, "MELD.Raw": meld, "StyleTalk": styletalk,
    "dailytalk": dailytalk, "expresso": expresso, "voicebench": voicebench, "speechocean762": speechocean762,
    "wavs": wavs, "crema_d": crema_d, "emodb": corpora.emodb, "texts.txt": texts,
}  # fmt: skip


def save_corpus(name: str, folder: Path) -> None:
    """Write a corpus under the name that the documents give its folder, unless it is there."""
    if not (folder / name).exists():
        CORPORA[name](folder / name)
        for file in _clips(folder / name):
            sound = soundfile.info(file)
            voices = [
                _voice(f"{file.relative_to(folder)} {k}", sound.duration, sound.samplerate)
                for k in range(sound.channels)
            ]
            soundfile.write(file, np.stack(voices, 1)[: sound.frames], sound.samplerate, subtype="PCM_16")


def _clips(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".wav", ".flac"))


def _voice(name: str, seconds: float, rate: int) -> NDArray[np.float32]:
    """A buzz whose pitch and loudness hang on the name, so that all clips differ and pitch can be measured."""
    rng = np.random.default_rng(crc32(name.encode()))
    at = np.arange(round(seconds * rate)) / rate
    pitch, loudness = rng.uniform(90, 280), rng.uniform(0.05, 0.2)
    harmonics = sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 8))
    return (loudness * harmonics + 0.002 * rng.standard_normal(len(at))).astype(np.float32)


def real_age(folder: Path) -> None:
    """Three manifests of short readings by children and adults, other speakers in each."""
    for split in ("train", "validation", "test"):
        lines = []
        for number in range(CHILDREN * 2):
            name, age = f"{split}-{number}.wav", ("child", "adult")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, _voice(name, 0.4 + 0.02 * number, 16_000), 16_000)
            speaker = f"{split}-{number // 4}-{age}"
            lines.append(
                {"id": name, "audio": name, "text": "we call it bear", "speaker": speaker, "labels": {"age": age}}
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
