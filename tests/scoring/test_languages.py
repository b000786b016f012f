"""Recipes in Mandarin, Hindi and both Mandarin and English, from manifest to table, with numbers counted by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from tests.conftest import write_lines, write_tone

from sottovoce.evaluation import read_predictions, read_results
from sottovoce.lightning_modules.speech_llm import SpeechLLM

Fit = Callable[..., Path]
CHOICES = ["neutral", "happy", "sad", "angry"]


class Language(NamedTuple):
    """What is said and what is answered, and by hand: errors and units."""

    asr: dict[str, Any]
    pairs: Mapping[str, str]  # transcript -> response
    errors: int
    units: int
    metric: str
    label: str  # in the table
    emotion: dict[str, Any]


MANDARIN = Language(
    {"metric": "cer"},
    {"今天天气很好": "今天天气很号", "我要一杯茶": "我要 一杯茶。"},  # one character of 6, none of 5
    1, 11, "cer/basic", "CER (basic) ↓",
    {"words": dict(zip(CHOICES, ["中性", "高兴", "悲伤", "愤怒"], strict=True)), "sentence": "说话人听起来{label}。"},
)  # fmt: skip
HINDI = Language(
    {"normalizer": "basic"},
    {"यह दिन अच्छा है": "यह दान अच्छा है", "नमस्ते दुनिया": "नमस्ते, दुनिया।"},  # day and gift: one word of 4, none of 2
    1, 6, "wer/basic", "WER (basic) ↓",
    {"words": dict(zip(CHOICES, ["सामान्य", "खुश", "दुखी", "नाराज़"], strict=True)), "sentence": "वक्ता {label} है।"},
)  # fmt: skip
MIXED = Language(
    {"metric": "mer"},
    {"我想买一个 iPhone 手机": "我想买一个iPhone手鸡", "明天 meeting 取消": "明天取消"},  # 1 of 8, 1 of 5
    2, 13, "mer/basic", "MER (basic) ↓",
    {"sentence": "The speaker sounds {label}。"},
)  # fmt: skip
LANGUAGES = {"zh": MANDARIN, "hi": HINDI, "cs": MIXED}


def manifest(folder: Path, split: str, language: Language, *, silent: bool = False) -> Path:
    """Tones that stand for these sentences, and one more clip, a silent one, on which nothing is said."""
    rows: list[dict[str, Any]] = []
    for i, text in enumerate([*language.pairs, *([""] if silent else [])]):
        name = f"{split}-{i}.wav"
        if text:
            write_tone(folder / name, 0.4 + 0.1 * i, 150 + 50 * i + 7 * len(split))
        else:
            soundfile.write(folder / name, np.zeros(8000), 16000)  # nothing is to be heard, either
        labels = {} if text == "" else {"emotion": CHOICES[i + 1]}
        line = {"id": f"{folder.name}-{split}-{i}", "audio": name, "text": text, "speaker": f"s{i}"}
        rows.append({**line, "labels": labels})
    return write_lines(folder / f"{split}.jsonl", rows)


def sides(folder: Path, language: Language, **entry: Any) -> dict[str, list[dict[str, Any]]]:
    folder.mkdir()
    return {
        split: [{"manifest": str(manifest(folder, split, language, silent=split != "validation")), **entry}]
        for split in ("train", "validation", "test")
    }


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LLM answers by the table above: to a transcript its response, to an emotion the right answer."""
    said = {text: response for language in LANGUAGES.values() for text, response in language.pairs.items()}

    def generate(self: Any, batch: Any, *_: Any) -> list[str]:
        return [
            said.get(e.utterance.text, "嗯，well") if e.task == "asr" else e.target or "" for e in batch.examples
        ]  # on the clip without speech two words, or a character and a word

    monkeypatch.setattr(SpeechLLM, "generate", generate)


def recipe_of(data: dict[str, Any], cache: Path, **tasks: Any) -> dict[str, Any]:
    stage = {"tasks": {"asr": 1, "emotion": 1}, "lr": 1e-2, "epochs": 1, "batch_size": 4}
    evaluation = {"batch_size": 5, "max_new_tokens": 6, "slots": ["both"]}
    known = {"emotion": {"choices": CHOICES, **tasks.get("emotion", {})}, "asr": tasks.get("asr", {})}
    return {"data": {"cache": str(cache), **data}, "tasks": known, "stages": {"joint": stage}, "evaluation": evaluation}


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("name", LANGUAGES)
def test_a_recipe_of_one_language(name: str, fit: Fit, tmp_path: Path) -> None:
    """The clip without speech adds what is inserted there: its characters (5), words (2), or both (1 and 1)."""
    language = LANGUAGES[name]
    data = sides(tmp_path / name, language)
    folder = fit(**recipe_of(data, tmp_path / "cache", asr=language.asr, emotion=language.emotion)) / "evaluation"
    inserted = {"zh": 5, "hi": 2, "cs": 2}[name]
    scores = {record.metric: record for record in read_results(folder)}
    rate = scores[language.metric]
    assert rate.value == pytest.approx((language.errors + inserted) / language.units, abs=1e-6)
    assert (rate.n, rate.speakers) == (3, 3)
    assert (scores["hallucinated"].value, scores["hallucinated"].n) == (1, 1)
    assert scores["accuracy"].value == scores["balanced_accuracy"].value == 1  # labels are read in their sentences
    assert {p.response for p in read_predictions(folder) if p.task == "emotion"} == {
        language.emotion["sentence"].format(label=language.emotion.get("words", {}).get(label, label))
        for label in ("happy", "sad")
    }
    page = (folder / "results.md").read_text("utf-8")
    assert f"| asr | {language.label} | {100 * rate.value:.1f} [" in page and "1 of 3 references say nothing" in page
    assert "normalizer takes away" not in page and "scripts without spaces" not in page


@pytest.mark.usefixtures("scripted")
def test_one_recipe_of_several_languages(fit: Fit, tmp_path: Path) -> None:
    """Each manifest has its own prompts, words and error rate, on one test side."""
    data: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for name, language in LANGUAGES.items():
        prompts = tmp_path / f"{name}.txt"
        prompts.write_text(f"({name})\n", "utf-8")
        own = {"asr": {**language.asr, "prompts": str(prompts)}, "emotion": language.emotion}
        for split, entries in sides(tmp_path / name, language, task_overrides=own).items():
            data[split] += entries
    folder = fit(**recipe_of(data, tmp_path / "cache")) / "evaluation"
    scores = {(record.task, record.metric): record.value for record in read_results(folder)}
    by_hand = {"cer/basic": 6 / 11, "wer/basic": 3 / 6, "mer/basic": 4 / 13, "hallucinated": 1, "accuracy": 1}
    for metric, value in by_hand.items():
        assert scores["emotion" if metric == "accuracy" else "asr", metric] == pytest.approx(value, abs=1e-6)
    asked = {(p.id.partition("-")[0], p.instruction) for p in read_predictions(folder) if p.task == "asr"}
    assert asked == {(name, f"({name})") for name in LANGUAGES}
