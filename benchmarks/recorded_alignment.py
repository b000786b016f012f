"""SpeechEmotionLlama on a frozen Whisper and a frozen chat LLM: two baselines and v1 to v3, on made and acted speech.

    python benchmarks/recorded_alignment.py --data DIR --whisper FILE --llm FOLDER [--parts 1 2 3] [--seeds 1 2 3]
        [--systems baseline_1 baseline_2 v1 v2 v3] [--runs DIR] [--answers DIR]

Words are learned of recorded readers (speechocean762 of DIR). eSpeak NG says 300 of their sentences in four emotions
(made); the six actors of EmoDB say ten German ones (acted), which the LLM is told in English. In each part one pair of
actors is tested, and sentences and voices of eSpeak NG that nobody heard in training. The frozen LLM itself writes the
targets, after "I am sad." and the like; captions are made by rule, since it cannot write them.

Baseline 1 answers readers as the LLM answers their words. All others start from it and go twice through made and acted
speech, with equally many rows for a task that they share: baseline 2 learns answers that know no feeling, v1 those
that do, v2 captions, too, v3 the emotion's name, too (conf/starter/speech_emotion_llama.yaml). `fit` is the share of
replies nearest to the LLM's own reply to that feeling; `targets` are these replies themselves, of which some are alike
for two feelings.

Answers are kept as those of recorded_people.py are, in the folder of --answers, and not trained for again.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import soundfile
from real_speech import PAIRS, Row, _every, read
from recorded_people import ACTORS, EMOTIONS, READERS, _lines, kept
from recorded_scores import shown
from rich.progress import track
from shared import sottovoce, table

from sottovoce.config.recipe import load
from sottovoce.data.tts.espeak_voices import SAMPLE_RATE, ESpeakSynthesizer
from sottovoce.demo.voices import MEN, WOMEN
from sottovoce.evaluation.awareness import emotion_fit
from sottovoce.evaluation.linear_probe import probe
from sottovoce.evaluation.metrics import Metric, Prediction, balanced_accuracy
from sottovoce.evaluation.records import read_predictions
from sottovoce.evaluation.text_similarity import rouge_l
from sottovoce.io import atomic_write
from sottovoce.lightning_modules.bundle import read_bundle
from sottovoce.scoring.speech_tokens import pooled_tokens
from sottovoce.training.splits import read_splits

RECIPE = "sottovoce:conf/starter/speech_emotion_llama.yaml"
PROMPTS = "sottovoce:data/prompts/speech_emotion_llama"
FELT = ("neutral", "happy", "sad", "angry")
SENTENCES = {"train": 240, "validation": 20, "test": 40}  # each in every emotion
TASKS: dict[str, dict[str, float]] = {  # how often each utterance is asked for it, in each of two epochs
    "baseline_1": {"asr": 1, "response": 1},
    "baseline_2": {"asr": 0.3, "response": 1},
    "v1": {"asr": 0.3, "response": 1},
    "v2": {"asr": 0.3, "response": 1, "caption": 0.5},
    "v3": {"asr": 0.3, "response": 1, "caption": 0.5, "emotion": 1},
}
SYSTEMS = tuple(TASKS)
WHISPERS = {"quincy"}  # whose pitch cannot be measured
PLAIN = ("baseline_1", "baseline_2")
SERVED = {  # tasks that a part of the data serves; words of German would be those of the translation
    "readers": ["asr"],
    "answered": ["asr", "response"],
    "made": ["asr", "response", "caption", "emotion"],
    "acted": ["response", "caption", "emotion"],
}
HEARD = {"readers": 0, "answered": 0, "made": 1, "acted": 3}  # times an epoch, where the LLM answers
GLOSSES = {  # of EmoDB's sentences
    "a01": "the cloth is lying on the fridge", "a02": "she will hand it in on wednesday",
    "a04": "tonight i could tell him", "a05": "the black sheet of paper is up there beside the piece of wood",
    "a07": "it will happen in seven hours", "b01": "what are the bags doing there under the table",
    "b02": "they just carried it upstairs and now they are going down again",
    "b03": "at the weekends i always went home and saw agnes",
    "b09": "i just want to take this away and then have a drink with karl",
    "b10": "it will be in the place where we always put it",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "whisper", "llm"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/recorded_alignment"))
    parser.add_argument("--answers", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--parts", type=int, nargs="+", choices=(1, 2, 3), default=(1, 2, 3))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    arguments = parser.parse_args()
    rows = []
    for system in arguments.systems:
        parts = [(seed, part) for seed in arguments.seeds for part in arguments.parts]
        told = [p for one in parts for p in answered(arguments, system, *one)]
        rows += [(system, source, *cells(told, source)) for source in ("made", "acted")]
    ceiling = [replace(p, response=p.target) for p in told if p.task == "response" and p.slots == "both"]
    rows += [("targets", source, *cells(ceiling, source)) for source in ("made", "acted")]
    page = table(("", "speech", *COLUMNS), rows, words=2) + "\n"
    atomic_write(arguments.runs / "results.md", page)
    print(page)


COLUMNS: dict[str, tuple[str, Metric]] = {
    "reply, ROUGE-L": ("response", rouge_l),
    "reply, fit": ("response", emotion_fit),
    "emotion named": ("emotion", balanced_accuracy),
    "probe": ("probe", balanced_accuracy),
}


def cells(told: Sequence[Prediction], source: str) -> Iterator[str]:
    """Scores of one kind of speech, with intervals over speakers."""
    for task, metric in COLUMNS.values():
        rows = [p for p in told if (p.task, p.source, p.slots) == (task, source, "both")]
        yield shown(metric(rows)) if rows else ""


def answered(arguments: argparse.Namespace, system: str, seed: int, part: int) -> list[Prediction]:
    file = arguments.answers / f"{system}-{seed}-{part}.jsonl"
    return kept(file, partial(_answers, arguments, system, seed, part))


def _answers(arguments: argparse.Namespace, system: str, seed: int, part: int) -> list[Prediction]:
    """Replies with the LLM's own to each feeling, names of emotions, and those of a linear probe of speech tokens."""
    files = manifests(arguments, part)
    for name in dict.fromkeys(("baseline_1", system)):
        sottovoce("fit", "--config", RECIPE, *overrides(arguments, files, name, seed, part))
    told = [p for p in read_predictions(folder(arguments, system, seed, part) / "evaluation") if p.slots == "both"]
    due: dict[tuple[str, str], dict[str, str]] = {}
    for line in _read(files["test"]["made"]) + _read(files["test"]["acted"]):
        due.setdefault((line["speaker"], line["text"]), {})[line["labels"]["emotion"]] = line["response"]
    said = {line["id"]: (line["speaker"], line["text"]) for side in files["test"].values() for line in _read(side)}
    replies = [
        replace(p, rivals=due[said[p.id]]) if p.task == "response" and len(due[said[p.id]]) > 1 else p for p in told
    ]  # where the LLM came to an end for one feeling alone, there is nothing to tell apart
    return [*replies, *_probed(arguments, files, system, seed, part)]


def _probed(
    arguments: argparse.Namespace, files: dict[str, dict[str, Path]], system: str, seed: int, part: int
) -> list[Prediction]:
    recipe = load(RECIPE, overrides(arguments, files, system, seed, part))
    splits = read_splits(recipe).splits
    sides = [[u for u in splits[side].utterances if "emotion" in u.labels] for side in ("train", "test")]
    both = [utterance for side in sides for utterance in side]
    tokens = pooled_tokens(read_bundle(recipe.folder / "bundle"), both).numpy()
    labels, who = [u.labels["emotion"] for u in both], [str(u.speaker) for u in both]
    found = probe(tokens, labels, who, held_out=[row >= len(sides[0]) for row in range(len(both))]).predictions
    acted_ids = {line["id"] for line in _read(files["test"]["acted"])}
    named = [(u.id, "acted" if u.id in acted_ids else "made") for u in sides[1]]
    return [replace(p, id=name, slots="both", source=source) for p, (name, source) in zip(found, named, strict=True)]


def folder(arguments: argparse.Namespace, system: str, seed: int, part: int) -> Path:
    return Path(arguments.runs) / f"{system}-{seed}-{part}"


def overrides(
    arguments: argparse.Namespace, files: dict[str, dict[str, Path]], system: str, seed: int, part: int
) -> list[str]:
    """What makes the recipe that of a system."""
    words = [f"encoder.checkpoint={arguments.whisper}", f"llm.checkpoint={arguments.llm}", "compile=true"]
    words += [f"seed={seed}", f"output_dir={arguments.runs}", f"name={system}-{seed}-{part}"]
    words += [f"tasks.emotion.choices={json.dumps(FELT)}", "evaluation.max_new_tokens=40", "evaluation.slots=[both]"]
    for side, parts in files.items():
        nodes = [
            {
                "manifest": str(file), "name": name, "allow": ["/"],
                "tasks": SERVED[name],
            }
            for name, file in parts.items()
        ]  # fmt: skip
        words.append(f"data.{side}={json.dumps(nodes)}")
    words.append('stages.words.parts={"readers": 1, "answered": 0, "made": 1, "acted": 0}')
    heard = {**HEARD, "answered": 1, "made": 0, "acted": 0} if system == "baseline_1" else HEARD
    tasks = {"caption": 0, "emotion": 0, **TASKS[system]}
    words += [f"stages.respond.parts={json.dumps(heard)}", f"stages.respond.tasks={json.dumps(tasks)}"]
    words.append("stages.respond.epochs=2")
    if system in PLAIN:
        words += ["tasks.response.kind=plain", "slots.speech.text=transcript"]
        words += [
            "evaluation.task_overrides={response: {kind: response}}",
            "evaluation.text={speech: tagged}",
        ]  # as all
    if system == "baseline_1":
        words.append("stages.respond.lr=5e-4")
    else:
        began = folder(arguments, "baseline_1", seed, part) / "bundle"
        words = [word for word in words if not word.startswith("stages.words.")]
        words += ["stages.words=null", f"init_from={began}"]
    return words


def manifests(arguments: argparse.Namespace, part: int) -> dict[str, dict[str, Path]]:
    """Side -> part -> manifest, with the LLM's answers; made where they are missing."""
    home = arguments.runs / f"data-{part}"
    sides: dict[str, dict[str, Path]] = {}
    lines = [*sides_of(arguments.data, arguments.runs / "made", part)]
    for side, name, rows in lines:
        file = home / f"{side}-{name}.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        done = file if name == "readers" else file.with_name(f"{file.stem}-answers.jsonl")
        if name == "readers":
            atomic_write(file, text)
        elif not done.is_file() or file.read_text("utf-8") != text:
            atomic_write(file, text)
            plain = done if name == "answered" else file.with_name(f"{file.stem}-plain.jsonl")
            write = ("--engine", "local", "--max-new-tokens", "40", f"checkpoint={arguments.llm}", "dtype=bfloat16")
            sottovoce(
                "targets", str(file), "--kind", "plain", "--prompt", f"{PROMPTS}/spoken_plain.txt",
                "--out", str(plain), *write,
            )  # fmt: skip
            if name != "answered":
                sottovoce(
                    "targets", str(plain), "--prompt", f"{PROMPTS}/spoken_feeling.txt", "--out", str(done), *write
                )
        sides.setdefault(side, {})[name] = done
    return sides


def sides_of(data: Path, made: Path, part: int) -> Iterator[tuple[str, str, list[Row]]]:
    """Side, part and its lines: no speaker of the test side is in another, and no sentence but EmoDB's."""
    readers = [row for name in READERS for row in read(data, name)]
    texts = sorted({text for row in readers if 4 <= len((text := row["text"].lower()).split()) <= 8})
    random.Random(0).shuffle(texts)
    chosen, start = {}, 0
    for side, count in SENTENCES.items():
        chosen[side], start = texts[start : start + count], start + count
    held_out = {*chosen["validation"], *chosen["test"]}
    late = _every(readers, 12)  # readers whose words choose the checkpoint
    for side in ("train", "validation"):
        of_side = [row for row in readers if (row["speaker"] in late) == (side == "validation")]
        lines = [line for line in _lines(of_side, ()) if line["text"] not in held_out]
        lines = [{**line, "audio": str((data / line["audio"]).resolve())} for line in lines]
        yield side, "readers", lines
        yield side, "answered", [{**line, "id": f"answered-{line['id']}"} for line in lines[::3]]
    for side, sentences in chosen.items():
        yield side, "made", [*spoken(sentences, side, made)]
        yield side, "acted", [*acted(data, side, part)]


def acted(data: Path, side: str, part: int) -> Iterator[Row]:
    """EmoDB by actor; validation has every tenth clip of those who are in training, who are few."""
    rows = [row for row in read(data, ACTORS) if EMOTIONS.get(row["emotion"]) in FELT]
    tested = [row for row in rows if row["speaker"] in PAIRS[part - 1]]
    heard = [row for row in rows if row["speaker"] not in PAIRS[part - 1]]
    chosen = {"train": [row for i, row in enumerate(heard) if i % 10], "validation": heard[::10], "test": tested}
    for row in chosen[side]:
        emotion, text = EMOTIONS[row["emotion"]], GLOSSES[row["sentence_id"]]
        yield {
            "id": row["audio"], "audio": str((data / row["audio"]).resolve()), "speaker": row["speaker"], "text": text,
            "labels": {"emotion": emotion}, "responses": {"caption": caption(text, emotion)},
        }  # fmt: skip


def spoken(sentences: Sequence[str], side: str, folder: Path) -> Iterator[Row]:
    """Each sentence in every emotion, by one voice of that side; said once, and kept in the folder."""
    synthesizer, voices = ESpeakSynthesizer(), sorted({*WOMEN[side], *MEN[side]} - WHISPERS)
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(track(sentences, f"speech: {side}")):
        voice = voices[number % len(voices)]
        for emotion in FELT:
            file = folder / f"{side}-{number}-{emotion}.flac"
            if not file.is_file():
                audio = synthesizer.speak(text, attribute="emotion", label=emotion, voice=f"en-us+{voice}", seed=number)
                soundfile.write(file, audio, SAMPLE_RATE)
            yield {
                "id": file.stem, "audio": str(file.resolve()), "speaker": voice, "text": text,
                "labels": {"emotion": emotion}, "responses": {"caption": caption(text, emotion)},
            }  # fmt: skip


def caption(text: str, emotion: str) -> str:
    return f'{"An" if emotion == "angry" else "A"} {emotion} voice says "{text}".'


def _read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


if __name__ == "__main__":
    main()
