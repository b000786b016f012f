"""Input as nobody should send it, and what must come of it: a result, or one error that tells what is wrong.

Every input is a function of its kind, a seed and a number, so that
`python -m tests.helpers.fuzz --kind KIND --only NUMBER` makes it again.
"""

import copy
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from sottovoce.data import manifest_schema
from sottovoce.data.audio import inspect_audio, load_audio
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.manifest import read_manifest
from sottovoce.errors import AudioError, SottovoceError

CHOICES = {"gender": ("male", "female"), "emotion": ("neutral", "happy", "sad")}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**18, 10**400, -(10**30), 1e-300, 1e308, float("inf"), float("nan"),
    "", " ", "\0", "a\nb", "\x1b[2J", "é", "\ud800", "x" * 3000, "type", "null", "${seed}", "${nowhere}",
    "${oc.env:HOME}", "${oc.create:{a: 1}}", "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "~", "%s%n",
    "sottovoce:demo/x", "sottovoce:../x", [], {}, [[]], [None], {"": ""}, {"type": "whisper"}, [1, "a", {}],
    {"a": {"b": {"c": [1]}}},
]  # fmt: skip
ODD_AUDIO = [
    "../canary.wav", "link.wav", "out/canary.wav", "loop/x.wav", "pipe.wav", "zero.wav", "folder.wav", ".", "..", "",
    "nul\0.wav", "x" * 300 + ".wav", "ok.wav/", "./ok.wav", "in/ok.wav", "out/../ok.wav", "//etc/passwd", "ok.wav\n",
]  # fmt: skip


class Canary(AssertionError):
    """A promise was broken: a file outside was opened, or code that an input brought along has run."""


def odd(rng: random.Random) -> Any:
    """Any value but the right one."""
    if rng.random() < 0.03:
        value: Any = "deep"
        for _ in range(rng.choice([10, 60, 150])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    return copy.deepcopy(rng.choice(ODD))


def twisted(node: Any, rng: random.Random, changes: int) -> Any:
    """A tree with some of its values, keys or branches exchanged."""
    node = json.loads(json.dumps(node))
    for _ in range(changes):
        at, parents = node, []
        while isinstance(at, dict | list) and at and (rng.random() < 0.75 or not parents):
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
            parents.append((at, key))
            at = at[key]
        if not parents:
            continue
        holder, key = parents[-1]
        what = rng.randrange(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[str(rng.choice(["", "x", str(key)[:-1], f"{key}x", "type", "extends"]))] = odd(rng)
        else:
            holder[key] = odd(rng)
    return node


def damaged(data: bytes, rng: random.Random, *, front: int = 0) -> bytes:
    """Bytes changed, cut, repeated, or put in; with `front`, mostly among the first so many."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(min(front, len(data)) if front and rng.random() < 0.8 else len(data)) if data else 0
        what = rng.randrange(6)
        if what == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            edges = [0, 1, 0x7F, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0]
            number = rng.choice([*edges, rng.getrandbits(32)])
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif what == 2:
            del data[at:]
        elif what == 3:
            del data[at : at + rng.randrange(1, 64)]
        elif what == 4:
            data[at:at] = data[at : at + rng.randrange(1, 256)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 32))
    return bytes(data)


class Manifests:
    """Manifests of a few lines, in a folder with links, a pipe and a clip outside that no line may reach."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        (self.root / "in").symlink_to(".")
        tone = 0.1 * np.sin(np.arange(16000))
        for file in (self.root / "ok.wav", folder / "canary.wav"):
            soundfile.write(file, tone, 16000)
        (self.root / "link.wav").symlink_to(folder / "canary.wav")
        (self.root / "out").symlink_to(folder)
        (self.root / "loop").symlink_to("loop")
        (self.root / "zero.wav").symlink_to("/dev/zero")
        (self.root / "folder.wav").mkdir()
        os.mkfifo(self.root / "pipe.wav")
        manifest_schema.read_header = self._watched  # type: ignore[attr-defined]

    def _watched(self, path: Path) -> Any:
        if not f"{os.path.realpath(path)}/".startswith(f"{os.path.realpath(self.root)}/"):
            raise Canary(f"opened {path}")
        return read_header(path)

    def make(self, rng: random.Random) -> bytes:
        return b"\n".join(self._line(rng, number) for number in range(rng.choice([1, 1, 2, 3])))

    def _line(self, rng: random.Random, number: int) -> bytes:
        said = [{"role": "user", "text": "a", "audio": "ok.wav"}, {"role": "assistant", "text": "b"}]
        line: Any = {"id": f"u{number}", "audio": "ok.wav", "text": "hello", "seconds": 1.0, "speaker": "s",
                     "labels": {"emotion": "sad", "gender": "male"}, "context": said, "responses": {"caption": "c"},
                     "category": "emotion", "answers": {"sad": "x", "happy": "y"}}  # fmt: skip
        if rng.random() < 0.4:
            at = rng.choice([line, line["context"][0]])
            at["audio"] = rng.choice(ODD_AUDIO)
        if rng.random() < 0.7:
            line = twisted(line, rng, rng.choice([1, 1, 2, 4]))
        text = json.dumps(line, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
        if rng.random() < 0.25:
            text = damaged(text, rng)
        if rng.random() < 0.02:
            twin = text[:-1] + b', "id": "twin"}'
            text = rng.choice([b"\xef\xbb\xbf" + text, twin, b"[" * 5000, b"9" * 5000, text * 2])
        return text

    def check(self, data: bytes, rng: random.Random) -> bool:
        file = self.root / "m.jsonl"
        file.write_bytes(data)
        found = read_manifest(file, choices=CHOICES, policy=rng.choice(["error", "skip"]))  # type: ignore[arg-type]
        for utterance in found.utterances:
            json.dumps(utterance.text, ensure_ascii=False).encode()
            if os.path.realpath(utterance.audio) != os.path.realpath(self.root / "ok.wav"):
                raise Canary(f"accepted {utterance.audio}")
        return bool(found.utterances)


class Audio:
    """Clips of every container that libsndfile writes, with headers that lie and streams that break off."""

    FORMATS = [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "IMA_ADPCM"), ("wav", "ULAW"), ("flac", "PCM_16"),
               ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"), ("au", "PCM_16"),
               ("caf", "PCM_16"), ("w64", "PCM_16"), ("rf64", "PCM_16")]  # fmt: skip

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.seeds = folder / "clip", []
        rng = np.random.default_rng(0)
        for channels in (1, 2):
            for form, subtype in self.FORMATS:
                noise = 0.1 * rng.standard_normal((4800, channels))
                soundfile.write(folder / "seed", noise, 16000, format=form, subtype=subtype)
                self.seeds.append((folder / "seed").read_bytes())

    def make(self, rng: random.Random) -> bytes:
        seed = rng.choice(self.seeds)
        if rng.random() < 0.02:
            noise, joined = rng.randbytes(200), seed + rng.choice(self.seeds)
            return rng.choice([b"", seed[:4], noise, b"RIFF" + seed[:40] * 3, joined])
        return damaged(seed, rng, front=rng.choice([0, 64, 256]))

    def check(self, data: bytes, rng: random.Random) -> bool:
        self.file.write_bytes(data)
        report = inspect_audio(self.file)
        try:
            samples = load_audio(self.file)
        except AudioError:
            assert report.problem, "load_audio refuses what inspect_audio finds nothing wrong with"
            raise
        assert report.problem is None, "load_audio takes what inspect_audio refuses"
        assert samples.ndim == 1 and samples.dtype == np.float32
        assert bool(np.isfinite(samples).all()) and 0 < len(samples) <= 3601 * 16000
        return True


def outcome(kind: Any, made: Any, rng: random.Random) -> bool:
    """Whether the input was read. One that is refused has a message for it, which is held to be short."""
    try:
        return bool(kind.check(made, rng))
    except SottovoceError as error:
        told = str(error)
        assert told.strip() and len(told) < 60_000, f"a message of {len(told)} characters"
        return False
