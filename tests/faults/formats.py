"""`python -m tests.faults.formats`: clips of every format, whole and cut, are decoded twice while other threads work.

The samples are equal, are those of the source, and of a cut clip those of the whole one up to where it ends; or the
clip is refused both times.
"""

import argparse
import random
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from sottovoce.data.audio import load_audio
from sottovoce.data.audio_framing import frame_bytes
from sottovoce.errors import AudioError
from tests.helpers.av_files import AV_FORMATS, write_av

RATE = 16000  # Hz
SHARES = (0.9, 0.5, 0.1)  # of its bytes, that are left of a cut clip
LAST = 2400  # samples at the end of a cut clip that may differ from those of the whole one: a lossy codec's last frames
LONGER = 0.16  # seconds by which an encoder's delay and last frame may make a clip longer
PIECE = 8000  # samples that are compared with those of the source
QUIET = 0.01  # RMS of pieces that are not compared: a lossy codec may change them at will
ALIKE = 0.75  # correlation with the source; of pieces of different speech it is 0.3, seldom above 0.5

Samples = NDArray[np.float32]
Writer = Callable[[Path, Samples], None]


def by_libsndfile(form: str, subtype: str | None = None, **knobs: Any) -> Writer:
    """Write one stream."""
    return lambda path, samples: soundfile.write(path, samples, RATE, subtype, format=form, **knobs)


def joined(write: Writer) -> Writer:
    """Write a clip as two streams, one behind the other."""

    def both(path: Path, samples: Samples) -> None:
        write(path, samples[: len(samples) // 3])
        first = path.read_bytes()
        write(path, samples[len(samples) // 3 :])
        path.write_bytes(first + path.read_bytes())

    return both


def without_length(write: Writer) -> Writer:
    """Write a clip, and take out of its header how long it is."""

    def patched(path: Path, samples: Samples) -> None:
        write(path, samples)
        content = path.read_bytes()
        if content[:4] == b"fLaC":
            path.write_bytes(content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]) + content[26:])
        elif content[:4] == b"RIFF":
            path.write_bytes(content[:40] + b"\xff\xff\xff\xff" + content[44:])
        else:
            path.write_bytes(content[frame_bytes(content, 0) :])

    return patched


def by_pyav(name: str) -> Writer:
    """Write what libsndfile does not."""
    return lambda path, samples: write_av(path, AV_FORMATS[name], samples, RATE)


CBR, VBR = (by_libsndfile("MP3", bitrate_mode=mode, compression_level=0.5) for mode in ("CONSTANT", "VARIABLE"))
VORBIS, OPUS = by_libsndfile("OGG", "VORBIS"), by_libsndfile("OGG", "OPUS")
FORMATS: dict[str, Writer] = {
    "WAV, 16 bit": by_libsndfile("WAV", "PCM_16"), "WAV, float": by_libsndfile("WAV", "FLOAT"),
    "WAV, mu-law": by_libsndfile("WAV", "ULAW"), "WAV, IMA ADPCM": by_libsndfile("WAV", "IMA_ADPCM"),
    "WAV from a pipe": without_length(by_libsndfile("WAV", "PCM_16")), "AIFF": by_libsndfile("AIFF", "PCM_16"),
    "AU": by_libsndfile("AU", "PCM_16"), "CAF": by_libsndfile("CAF", "PCM_16"), "W64": by_libsndfile("W64", "PCM_16"),
    "RF64": by_libsndfile("RF64", "PCM_16"), "NIST SPHERE": by_libsndfile("NIST", "PCM_16"),
    "FLAC": by_libsndfile("FLAC", "PCM_16"), "FLAC from a pipe": without_length(by_libsndfile("FLAC", "PCM_16")),
    "Ogg Vorbis": VORBIS, "Ogg Opus": OPUS, "Ogg Vorbis, chained": joined(VORBIS), "Ogg Opus, chained": joined(OPUS),
    "MP3 CBR": CBR, "MP3 VBR": VBR, "MP3 CBR without tag": without_length(CBR),
    "MP3 VBR without tag": without_length(VBR), "MP3, two joined": joined(CBR),
    **{name: by_pyav(name) for name in AV_FORMATS},
}  # fmt: skip
EXACT = (
    "WAV, 16 bit", "WAV from a pipe", "AIFF", "AU", "CAF", "W64", "RF64", "NIST SPHERE", "FLAC", "FLAC from a pipe",
    "alac",
)  # fmt: skip


@dataclass
class Row:
    """What was done with the clips of one format."""

    clips: int = 0
    read: Counter[str] = field(default_factory=Counter)  # whole, cut
    refused: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def sources(data: Path | None, rng: np.random.Generator) -> Iterator[Samples]:
    """Clips of 1 to 5 s: of recordings, or of tones whose loudness changes at random."""
    files = sorted(file for file in data.rglob("*") if file.suffix in (".wav", ".flac", ".mp3", ".ogg")) if data else []
    while True:
        length = int(rng.uniform(1, 5) * RATE)
        if not files:
            time = np.arange(length) / RATE
            steps = np.repeat(rng.uniform(0.02, 1, length // 1600 + 1), 1600)[:length]
            tones = sum(np.sin(2 * np.pi * hz * time) for hz in rng.uniform(300, 3000, 4))
            yield (0.15 * steps * tones).astype(np.float32)
            continue
        try:
            samples = load_audio(files[rng.integers(len(files))], RATE)
        except AudioError:
            continue
        begin = int(rng.integers(max(1, len(samples) - length)))
        if len(part := samples[begin : begin + length]) >= RATE:
            yield np.clip(part, -0.99, 0.99)


@contextmanager
def other_work(clips: Sequence[Path], threads: int = 2) -> Iterator[None]:
    """Threads that fill memory and give it back, and decode other clips."""
    stop = threading.Event()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            np.full(rng.randrange(1000, 300_000), rng.uniform(-1e9, 1e9), np.float32)
            outcome(rng.choice(clips))

    running = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()


def outcome(file: Path) -> Samples | str:
    """The samples of a clip, or why it is refused."""
    try:
        return load_audio(file, RATE)
    except AudioError as error:
        return str(error).removeprefix(f"{file}: ")


def examine(file: Path, source: Samples, name: str, row: Row) -> None:
    """Decode a clip and what is left of it at each cut, twice, and note what is wrong with the samples."""
    content, whole = file.read_bytes(), outcome(file)
    row.clips += 1
    for share in (1.0, *SHARES):
        file.write_bytes(content[: int(share * len(content))])
        kind = "whole" if share == 1 else "cut"
        first, again = outcome(file), outcome(file)
        if isinstance(first, str) or isinstance(again, str):
            row.refused[kind] += 1
            row.said[re.sub(r"\d[\d.]*", "N", str(first))] += 1
            wrong = "" if isinstance(first, str) and first == again else "refused in one of two tries"
        else:
            row.read[kind] += 1
            wrong = "" if np.array_equal(first, again) else "other samples in the second try"
            wrong = wrong or (unlike(first, source, name) if share == 1 else beyond(first, whole))
        row.faults += [f"{name}, {share:.0%}: {wrong}"] if wrong else []


def unlike(samples: Samples, source: Samples, name: str) -> str:
    """How a whole clip differs from what was written; empty where it does not."""
    if name in EXACT:
        near = len(samples) == len(source) and np.abs(samples - source).max() <= 1 / 32768
        return "" if near else "not the samples that were written"
    if not -LONGER <= (len(samples) - len(source)) / RATE <= LONGER:
        return f"{len(samples)} samples of {len(source)}"
    size = 1 << (len(samples) + len(source)).bit_length()
    match = np.fft.irfft(np.fft.rfft(samples, size) * np.conj(np.fft.rfft(source, size)))
    lag = int(match.argmax()) - (size if match.argmax() > size // 2 else 0)
    ours, theirs = samples[max(0, lag) :], source[max(0, -lag) :]
    pieces = [(ours[at : at + PIECE], theirs[at : at + PIECE]) for at in range(0, len(theirs) - PIECE, PIECE)]
    loud = [(a, b) for a, b in pieces if len(a) == PIECE and np.sqrt(np.square(b).mean()) > QUIET]
    worst = min((likeness(a, b) for a, b in loud), default=1.0)
    return "" if worst > ALIKE and abs(lag) <= LONGER * RATE else f"another sound: correlation {worst:.2f}, lag {lag}"


def likeness(ours: Samples, theirs: Samples) -> float:
    """Correlation of waveforms, or of spectrograms in dB below 3.4 kHz, which is all that codecs of telephones keep."""
    spectra = []
    for samples in (ours, theirs):
        frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * np.hanning(400)
        spectra.append(np.log(1e-2 + np.abs(np.fft.rfft(frames))[:, 3:85]).ravel())
    return max(float(np.corrcoef(*pair)[0, 1]) for pair in ((ours, theirs), spectra))


def beyond(samples: Samples, whole: Samples | str) -> str:
    """What a cut clip has that the whole one has not."""
    if isinstance(whole, str) or len(samples) > len(whole):
        return "more samples than in the whole clip"
    kept = max(0, len(samples) - LAST)
    return "" if np.allclose(samples[:kept], whole[:kept], atol=1e-5) else "samples that the whole clip does not have"


def run(clips: int, data: Path | None, seed: int, folder: Path) -> dict[str, Row]:
    """So many clips, spread over the formats."""
    rng, rows = np.random.default_rng(seed), {name: Row() for name in FORMATS}
    made = sources(data, rng)
    others = []
    for number, write in enumerate(FORMATS.values()):
        others.append(folder / f"other{number}")
        write(others[-1], next(made))
    with other_work(others):
        for number in range(clips):
            name = list(FORMATS)[number % len(FORMATS)]
            source, file = next(made), folder / "clip"
            FORMATS[name](file, source)
            examine(file, source, name, rows[name])
    return rows


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    lines = ["| format | clips | whole: read, refused | cut: read, refused | said |", "|---|---:|---:|---:|---|"]
    for name, row in rows.items():
        said = "; ".join(f"{text} ({count})" for text, count in row.said.most_common())
        counts = [f"{row.read[kind]}, {row.refused[kind]}" for kind in ("whole", "cut")]
        lines.append(f"| {name} | {row.clips} | {counts[0]} | {counts[1]} | {said} |")
    faults = [fault for row in rows.values() for fault in row.faults]
    return "\n".join([*lines, "", f"{len(faults)} faults", *faults])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.formats", description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--data", type=Path, help="a folder of recordings; else tones")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(arguments.clips, arguments.data, arguments.seed, Path(folder))
    print(table(rows))
    return int(any(row.faults for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
