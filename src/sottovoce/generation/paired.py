"""Paired data: the same words, spoken by each kind of speaker, with the answer that is right for that speaker.

After PE-FT (2026), section 3: texts in three categories (age, gender, emotion), each spoken with two values of its
attribute, and a different right answer for each.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sottovoce.data.audio_decoder import read_header
from sottovoce.data.manifest import read_manifest
from sottovoce.data.paired_texts import HELD_OUT, Text, is_held_out, number_of, read_texts, select
from sottovoce.data.skipped import Skipped
from sottovoce.data.tts import SYNTHESIZERS
from sottovoce.data.tts.base import Synthesizer, digest
from sottovoce.errors import ConfigError, ManifestError, nearest
from sottovoce.generation.paired_config import SPLITS, PairedRecipe, load
from sottovoce.generation.speak import Clip, speak
from sottovoce.generation.writer import Writer
from sottovoce.io import atomic_open, atomic_write
from sottovoce.llms import ENGINES
from sottovoce.llms.answer_cache import CachedEngine
from sottovoce.paths import resolve
from sottovoce.progress import Progress


@dataclass
class Report:
    """What was made, what it lacks, and what was left out, by name."""

    out: Path
    spoken: int = 0  # clips that were spoken now
    kept: int = 0  # that were there
    asked: int = 0  # chats that went to the LLM
    again: int = 0  # of them because an answer could not be used
    made: dict[str, Counter[str]] = field(default_factory=dict)  # split -> clips of each category
    texts: dict[str, Counter[str]] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    def __str__(self) -> str:
        asked = f"; {self.asked} chats asked, {self.again} of them again" if self.asked else ""
        lines = [f"{self.out}: {self.spoken} clips spoken, {self.kept} were there{asked}"]
        for split, clips in self.made.items():
            each = ", ".join(f"{name} {count}" for name, count in sorted(clips.items()))
            texts = f"{self.texts[split].total()} texts" + (f" ({each})" if each else "; not written")
            lines.append(f"  {split + '.jsonl':<17} {clips.total()} clips of {texts}")
        return "\n".join([*lines, *(f"  short: {line}" for line in self.short), *filter(None, [str(self.skipped)])])


def paired(config: str, overrides: Sequence[str] = ()) -> None:
    """The command: make the data of a recipe and print what was made."""
    with Progress() as progress:
        report = make(load(Path(config), overrides), progress)
    print(report)


def dry_run(config: str, overrides: Sequence[str] = ()) -> None:
    """Check a recipe and say what it asks for; nothing is written, asked or spoken."""
    recipe = load(Path(config), overrides)
    texts = [text for file in recipe.files for text in read_texts(resolve(file), recipe.values)]
    print(f"{config}: {len(texts)} texts from {len(recipe.files)} files")
    if recipe.writer:
        print(f"  writer: {recipe.writer.texts} texts in each of {', '.join(recipe.writer.topics)}")
    for split in SPLITS:
        most = recipe.texts.get(split)
        each = {name: node.realisations or len(node.values) for name, node in recipe.categories.items()}
        if most is not None:
            total = sum(most * count for count in each.values())
            print(f"  {split}: at most {most} texts a category, {total} clips ({', '.join(each)})")
    held = sum(is_held_out(text.topic, recipe.held_out_topics) for text in texts)
    print(f"  {HELD_OUT}: {held} texts of the files, on {', '.join(recipe.held_out_topics) or 'nothing'}")


def make(recipe: PairedRecipe, progress: Progress | None = None) -> Report:
    """Write the manifests and clips of a recipe into its folder; what is there already is not made again.

    Raises:
        ConfigError: a held-out topic matches no text, or the synthesizer cannot do what is asked.
        ManifestError: a file of texts has faults, or nothing could be made.
        SottovoceError: the LLM or the synthesizer can do nothing at all.
    """
    out = Path(recipe.out)
    report, synthesizer = Report(out), _synthesizer(recipe)
    texts = [text for file in recipe.files for text in read_texts(resolve(file), recipe.values)]
    if recipe.writer:
        cached = CachedEngine(ENGINES.build(recipe.writer.engine), out / "writer.answers", progress, "writing texts")
        writer = Writer(recipe.writer, cached, recipe.values, report.skipped, recipe.seed)
        texts += writer.answers(writer.questions(), lambda text: labels_of(recipe, text))
        report.asked, report.again = cached.asked, writer.again
    _check_topics(recipe, texts)
    splits = select(texts, recipe.shares, recipe.texts, recipe.held_out_topics, recipe.seed, report.skipped)
    clips = [c for split, chosen in splits.items() for text in chosen for c in _clips(recipe, synthesizer, split, text)]
    atomic_write(out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe.plain())))
    failed, report.kept = speak(recipe.synthesizer, synthesizer, clips, out, recipe.num_workers, progress)
    report.spoken = len(clips) - report.kept - len(failed)
    _write(recipe, splits, clips, failed, report)
    return report


def labels_of(recipe: PairedRecipe, text: Text) -> list[str]:
    """The labels in which a text is spoken: all of its category, or some that are drawn by its words and the seed."""
    node = recipe.categories[text.category]
    if node.realisations is None:
        return node.values
    drawn = random.Random(f"{recipe.seed} {text.category} {text.key}").sample(node.values, node.realisations)
    return [value for value in node.values if value in drawn]


def _synthesizer(recipe: PairedRecipe) -> Synthesizer:
    synthesizer = SYNTHESIZERS.build(recipe.synthesizer)
    faults: list[str] = []
    for split in (*SPLITS, HELD_OUT):
        voices = {
            category: {label: recipe.voices_of(split, category, label) for label in labels}
            for category, labels in recipe.values.items()
        }
        faults += synthesizer.faults(recipe.values, voices)
    if faults:
        name = recipe.synthesizer["type"]
        message = "\n".join(f"synthesizer {name}: {fault}" for fault in dict.fromkeys(faults))
        raise ConfigError(message, code="bad-value", where="synthesizer")
    return synthesizer


def _check_topics(recipe: PairedRecipe, texts: Iterable[Text]) -> None:
    known = {name for text in texts if text.topic for name in (text.topic, text.topic.partition("/")[0])}
    for topic in recipe.held_out_topics:
        if topic not in known:
            raise ConfigError.at("held_out_topics", "unknown-name", f"no text is on {topic!r}.{nearest(topic, known)}")


def _clips(recipe: PairedRecipe, synthesizer: Synthesizer, split: str, text: Text) -> list[Clip]:
    """One clip a label. Labels that the same voices say are said by one voice, so that only the label differs."""
    clips = []
    for label in labels_of(recipe, text):
        voices = recipe.voices_of(split, text.category, label)
        voice = voices[int(number_of(recipe.seed, "voice", text.key) * len(voices))]
        seed = int(number_of(recipe.seed, "clip", text.key, label) * 2**31)
        name = digest(synthesizer.name, text.text, text.category, label, voice, seed)
        clips.append(Clip(split, text, label, voice, seed, f"audio/{name}.wav"))
    return clips


def _write(
    recipe: PairedRecipe, splits: Iterable[str], clips: Sequence[Clip], failed: Mapping[Clip, str], report: Report
) -> None:
    """The manifests. A text that lacks one of its clips is left out whole: it would be no pair."""
    broken = {(clip.text.category, clip.text.key) for clip in failed}
    for clip, reason in failed.items():
        report.skipped.add(f"not spoken: {reason}", f"{clip.label}, {clip.voice}: {clip.text.text}")
    for split in splits:
        good = [c for c in clips if c.split == split and (c.text.category, c.text.key) not in broken]
        report.made[split] = Counter(clip.text.category for clip in good)
        report.texts[split] = Counter(category for category, _ in {(c.text.category, c.text.key) for c in good})
        for category in recipe.categories:
            wanted, got = recipe.texts.get(split, 0), report.texts[split][category]
            if got < wanted:
                report.short.append(f"{split}: {got} texts on {category}, {wanted} were asked for")
        write_manifest(report.out / f"{split}.jsonl", [_line(report.out, clip) for clip in good], recipe.values)
    if not any(counts.total() for counts in report.made.values()):
        raise ManifestError(f"nothing could be made\n{report}", code="empty", where=report.out)


def _line(out: Path, clip: Clip) -> dict[str, Any]:
    text = clip.text
    line = {
        "id": f"{text.category}-{digest(text.key)[:10]}-{clip.label}", "audio": clip.file, "text": text.text,
        "speaker": clip.voice, "seconds": round(read_header(out / clip.file).seconds, 4),
        "labels": {text.category: clip.label}, "category": text.category, "topic": text.topic,
        "response": text.answers[clip.label], "answers": text.answers,
    }  # fmt: skip
    return {key: value for key, value in line.items() if value is not None}


def write_manifest(file: Path, lines: list[dict[str, Any]], values: Mapping[str, Sequence[str]]) -> None:
    """A manifest appears whole, and only if it can be read; one without a line is taken away, were it from before."""
    if not lines:
        file.unlink(missing_ok=True)
        return
    with atomic_open(file) as stream:
        stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        stream.flush()
        read_manifest(Path(stream.name), choices=values)
