"""What the command `speak` does: texts become made speech, each said by voices that are drawn, and a manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.config_model import Node
from sottovoce.config_tree import read_overrides
from sottovoce.data.audio_decoder import read_header
from sottovoce.data.corpora.files import read_text
from sottovoce.data.paired_texts import Text, number_of
from sottovoce.data.skipped import Skipped
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import digest
from sottovoce.errors import ConfigError, ManifestError
from sottovoce.generation.paired import write_manifest
from sottovoce.generation.speak import Clip, speak
from sottovoce.progress import Progress

MANIFEST = "manifest.jsonl"


def speak_texts(
    texts: str, out: str, synthesizer: str, voice: Sequence[str], attribute: str, each: int, seed: int, workers: int,
    overrides: Sequence[str],
) -> None:  # fmt: skip
    """The command: write clips and manifest, and print what could not be spoken."""
    node = {"type": synthesizer, **read_overrides(overrides)}
    with Progress() as progress:
        print(write_speech(Path(texts), Path(out), node, read_voices(voice), attribute, each, seed, workers, progress))


def read_voices(words: Sequence[str]) -> dict[str, list[str]]:
    """Label -> voices, of words such as `female=heart,kore`; raises ConfigError for another word."""
    voices: dict[str, list[str]] = {}
    for word in words:
        label, _, names = word.partition("=")
        if not label or not all(found := names.split(",")):
            raise ConfigError.at("voice", "bad-value", f"write LABEL=VOICE, such as female=heart, found {word!r}")
        voices.setdefault(label, []).extend(found)
    return voices


def write_speech(
    source: Path, out: Path, node: Node, voices: Mapping[str, Sequence[str]], attribute: str = "gender",
    each: int = 1, seed: int = 0, workers: int = 1, progress: Progress | None = None,
) -> str:  # fmt: skip
    """Speak every line of a text file, once by each of `each` voices; what is there already is not made again.

    The voices are drawn for each text by its words and the seed, so that more texts change nothing of the others.

    Args:
        source: a text a line; empty lines and repetitions are left out.
        out: folder of `manifest.jsonl` and the clips.
        node: the synthesizer.
        voices: label of `attribute` -> voices that have it.
        attribute: such as gender.
        each: voices that say a text.
        seed: of what is drawn.
        workers: threads or processes that synthesize.
        progress: shows how far it is.

    Returns:
        What was made, and what could not be.

    Raises:
        ConfigError: a voice or the synthesizer cannot do what is asked, or there are fewer than `each` voices.
        MissingError: there is no such file, or the synthesizer's package is not installed.
        ManifestError: nothing could be made.
    """
    known = list(dict.fromkeys((label, name) for label, names in voices.items() for name in names))
    if not 1 <= each <= len(known):
        told = f"{each} voices a text are asked for, and {len(known)} are named"
        raise ConfigError.at("each", "conflict", told)
    synthesizer = SYNTHESIZERS.build(node)
    if faults := synthesizer.faults({attribute: list(voices)}, {attribute: voices}):
        raise ConfigError.at("voice", "bad-value", "\n".join(faults))
    said: dict[str, Text] = {}
    for number, line in enumerate(read_text(source).splitlines(), 1):
        text = Text(line.strip(), attribute, None, {}, f"{source}:{number}")
        if text.key:
            said.setdefault(text.key, text)
    clips = []
    for text in said.values():
        order = sorted(known, key=lambda one: number_of(seed, "voice", text.key, *one))
        for label, name in order[:each]:
            drawn = int(number_of(seed, "clip", text.key, name) * 2**31)
            file = f"audio/{digest(synthesizer.name, text.text, attribute, label, name, drawn)}.wav"
            clips.append(Clip("", text, label, name, drawn, file))
    failed, kept = speak(node, synthesizer, clips, out, workers, progress)
    skipped = Skipped()
    for clip, reason in failed.items():
        skipped.add(f"not spoken: {reason}", f"{clip.text.where}: {clip.voice}")
    lines = [_line(out, clip) for clip in clips if clip not in failed]
    if not lines:
        raise ManifestError(f"{source}: nothing could be spoken\n{skipped}", code="empty", where=source)
    write_manifest(out / MANIFEST, lines, {attribute: list(voices)})
    told = f"{out / MANIFEST}: {len(lines)} clips of {len(said)} texts, {kept} were there"
    return "\n".join([told, *filter(None, [str(skipped)])])


def _line(out: Path, clip: Clip) -> dict[str, Any]:
    return {
        "id": f"{digest(clip.text.key)[:10]}-{clip.voice}", "audio": clip.file, "text": clip.text.text,
        "speaker": clip.voice, "seconds": round(read_header(out / clip.file).seconds, 4),
        "labels": {clip.text.category: clip.label},
    }  # fmt: skip
