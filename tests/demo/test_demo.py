"""The demo world: splits that never touch, voices that sound as they are labelled, backbones that ship."""

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sottovoce.data.acoustic_labels import levels, measure
from sottovoce.data.tts.espeak import ESpeak
from sottovoce.demo import corpus, pretrain_conformer, pretrain_llm_deep
from sottovoce.demo.corpus import DemoWorld, speak_corpus, speak_one
from sottovoce.demo.paired_lessons import KINDS
from sottovoce.demo.paired_words import VALUES, answers, category_of, draw_text, plain
from sottovoce.demo.voices import MEN, WOMEN, speakers
from sottovoce.demo.world import CHOICES, draw_sentence, reply, split_of
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.whisper import WhisperEncoder
from sottovoce.evaluation.retention import read_items
from sottovoce.llms import CausalLLM, ChatTurn
from sottovoce.paths import resolve
from sottovoce.scoring.text_retention import retention
from sottovoce.templates import read_wordings

SPLITS = ("train", "validation", "test")


def test_no_voice_and_no_sentence_is_in_two_splits() -> None:
    for table in (WOMEN, MEN):
        names = [name for split in SPLITS for name in table[split]]
        assert len(names) == len(set(names))
    drawn = {split: {draw_sentence(random.Random(i), split) for i in range(200)} for split in SPLITS}
    assert all(split_of(sentence) == split for split in SPLITS for sentence in drawn[split])
    voices = {split: {s.split(".")[0] for sex in CHOICES["gender"] for s in speakers(split, sex)} for split in SPLITS}
    assert not voices["train"] & voices["test"] and not voices["train"] & voices["validation"]


def test_an_utterance_is_a_function_of_its_number() -> None:
    """Words, style and speaker exactly; the sound up to eSpeak's own flutter, whose state cannot be reset."""
    first, again = speak_one("test", 0, 5), speak_one("test", 0, 5)
    assert (first.sentence, first.style, first.speaker) == (again.sentence, again.style, again.speaker)
    assert abs(len(first.audio) - len(again.audio)) < 320 and np.isclose(
        first.audio.std(), again.audio.std(), rtol=0.02
    )


def test_a_corpus_sounds_the_same_whoever_speaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: by one process or by two, which take turns as they come."""
    monkeypatch.setattr(corpus, "CHUNK", 2)
    alone, together = ([u.audio for u in speak_corpus(5, "test", 0, workers)] for workers in (1, 2))
    assert all(map(np.array_equal, alone, together))


def test_labels_are_what_is_measured() -> None:
    """Energy and tempo agree with TextrolSpeech's thresholds, pitch with the order of the voice's own sex."""
    spoken = [speak_one("test", 0, i) for i in range(40)]
    measured = [measure(one.audio, 16_000, one.sentence) for one in spoken]
    pairs = [(m, one.style) for m, one in zip(measured, spoken, strict=True)]
    for name in ("energy", "tempo"):
        said = {"weak": "low", "strong": "high"}  # what the world calls the levels of energy
        agree = [levels(m)[name] == said.get(getattr(style, name), getattr(style, name)) for m, style in pairs]
        assert np.mean(agree) >= 0.85, name  # tempo is set by the voice's average, and sentences differ
    for sex in CHOICES["gender"]:
        low, high = (
            [m.f0_hz for m, style in pairs if (style.gender, style.pitch) == (sex, level) and m.f0_hz is not None]
            for level in ("low", "high")
        )
        assert np.median(low) * 1.25 < np.median(high)


def test_a_corpus_is_made_once_and_is_a_manifest(tmp_path: Path) -> None:
    world = DemoWorld(train=12, validation=2, test=2, workers=1)
    made = world.prepare(tmp_path)
    lines = [json.loads(line) for line in made["train"].read_text().splitlines()]
    assert len(lines) == 12 and set(lines[0]["labels"]) == set(CHOICES)
    stamp = made["train"].stat().st_mtime_ns
    assert world.prepare(tmp_path) == made and made["train"].stat().st_mtime_ns == stamp


def test_the_backbones_ship_as_safetensors_and_are_small() -> None:
    files = [file for file in resolve("sottovoce:demo/backbones").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jsonl", ".py", ".jinja", ".pyc"}


@pytest.fixture(scope="module")
def llm() -> CausalLLM:
    return backbone("llm")


@pytest.fixture(scope="module")
def deep() -> CausalLLM:
    return backbone("llm_deep")


def backbone(name: str) -> CausalLLM:
    llm = CausalLLM(f"sottovoce:demo/backbones/{name}", "float32")
    llm.load()
    return llm


def say(llm: CausalLLM, instruction: str, *turns: str) -> str:
    roles = ["user", "assistant"] * len(turns)
    chat = [ChatTurn("system", (instruction,)), *(ChatTurn(r, (t,)) for r, t in zip(roles, turns, strict=False))]  # type: ignore
    return llm.generate([llm.embed(llm.chat.prompt(chat), {})], 32)[0]


@pytest.mark.parametrize("emotion", CHOICES["emotion"])
def test_the_llm_answers_words_in_the_light_of_a_style(llm: CausalLLM, emotion: str) -> None:
    sentence = draw_sentence(random.Random(3), "test")
    article = "An" if emotion == "angry" else "A"
    caption = f"{article} {emotion} female voice with low pitch, slow tempo and strong energy."
    instruction = "Talk with the speaker. Reply to the words and to the feeling in one or two short sentences."
    assert say(llm, instruction, f"{caption}\n{sentence}") == reply(sentence, emotion)


@pytest.mark.parametrize("style", ["weak, male, sad, slow, high", "slow sad high high male weak sad"])
def test_the_llm_reads_a_style_in_any_order(llm: CausalLLM, style: str) -> None:
    asked = {
        "What is the pitch of the voice? Choose from: low, high.": "The pitch is high.",
        "How loud is the voice? Choose from: weak, strong.": "The energy is weak.",
        "What is the gender of the speaker? Choose from: male, female.": "The speaker is male.",
        "How fast is the voice? Choose from: slow, fast.": "The tempo is slow.",
        "Which emotion do you hear? Choose from: neutral, happy, sad, angry.": "The speaker sounds sad.",
    }
    assert {question: say(llm, question, style) for question in asked} == asked


@pytest.mark.parametrize("emotion", CHOICES["emotion"])
def test_the_llm_knows_the_prompts_of_speech_emotion_llama(llm: CausalLLM, emotion: str) -> None:
    sentence = draw_sentence(random.Random(4), "test")
    wanted = {"": reply(sentence, emotion), "asr": sentence, "emotion": emotion}
    wanted["caption"] = f"A {emotion} speaker says: {sentence}."
    fields = {"choices": ", ".join(CHOICES["emotion"])}
    for prompt, answer in wanted.items():
        file = resolve(f"sottovoce:data/prompts/speech_emotion_llama/{prompt}.txt")
        before = read_wordings(file, fields)[0] + " " if prompt else ""
        chat = [ChatTurn("user", (f"{before}<{emotion}> {sentence}",))]
        assert llm.generate([llm.embed(llm.chat.prompt(chat), {})], 32) == [answer]


def test_the_llm_answered_unseen_sentences_rightly() -> None:
    card = json.loads(resolve("sottovoce:demo/backbones/llm.json").read_text())
    assert all(share >= 0.95 for kind, share in card["validation"].items() if kind != "words")


def test_the_deeper_llm_answers_by_what_it_is_told_of_the_speaker(deep: CausalLLM) -> None:
    """Topics of child safety among them; told nothing, it answers the words. Every word of an answer counts."""
    asked, due = [], []
    for verb in ("fixed", "opened", "bought", "left", "lost", "kept", "found", "broke"):
        sentence = draw_text(random.Random(verb), "test", (verb,))
        for value in VALUES[category_of(verb)]:
            asked.append(f"<{value}> {sentence}")
            due.append(answers(sentence)[value])
        asked.append(sentence)
        due.append(plain(sentence))
    chats = [[ChatTurn("user", (text,))] for text in asked]
    said = deep.generate([deep.embed(deep.chat.prompt(chat), {}) for chat in chats], 32)
    right = [answer == wanted for answer, wanted in zip(said, due, strict=True)]
    assert sum(right) >= 0.9 * len(right), [pair for pair in zip(said, due, strict=True) if pair[0] != pair[1]]


def test_the_deeper_llm_has_layers_enough_to_tell_apart(deep: CausalLLM) -> None:
    assert len(deep.layers) == pretrain_llm_deep.LAYERS >= 7
    card = json.loads(resolve("sottovoce:demo/backbones/llm_deep.json").read_text())
    assert all(share >= 0.95 for kind, share in card["validation"].items() if kind not in ("words", "unknown"))
    weights = resolve("sottovoce:demo/backbones/llm_deep/model.safetensors")
    assert weights.stat().st_size < 8_000_000


def test_the_deeper_llm_is_asked_again_what_it_knows(deep: CausalLLM) -> None:
    items = read_items(resolve("sottovoce:demo/backbones/retention.jsonl"))
    assert len(items) == 220 and retention(deep, items[::10], batch_size=22).right >= 0.8


def test_growing_changes_nothing_yet_and_narrowing_leaves_what_weighs_most() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    seedling, ids = Qwen2ForCausalLM(config), torch.arange(40).reshape(2, 20)
    for layer in seedling.model.layers:
        layer.mlp.up_proj.weight.data[::2] = 0  # every second unit says nothing, whatever its gate
    before = seedling(input_ids=ids).logits
    pretrain_llm_deep.narrow(seedling, 4)
    assert torch.allclose(seedling(input_ids=ids).logits, before, atol=1e-6)
    grown = pretrain_llm_deep.grown(seedling, 5)
    assert torch.equal(grown(input_ids=ids).logits, seedling(input_ids=ids).logits)
    assert len(grown.model.layers) == grown.config.num_hidden_layers == 5 and grown.config.intermediate_size == 4


def test_pretraining_the_deeper_llm_runs(tmp_path: Path) -> None:
    shutil.copytree(resolve("sottovoce:demo/backbones/llm"), tmp_path / "llm")
    phase = replace(pretrain_llm_deep.PHASES[0], steps=1, batch=2)
    scores = pretrain_llm_deep.pretrain(tmp_path, (phase, phase))
    assert set(scores) == set(KINDS) and scores["paired"] < 0.5
    assert CausalLLM(str(tmp_path / "llm_deep"), "float32").load() is None
    shipped = resolve("sottovoce:demo/backbones")
    digests = [[item.digest for item in read_items(at / "retention.jsonl")] for at in (tmp_path, shipped)]
    assert digests[0] == digests[1]


def test_a_corpus_may_have_each_sentence_in_every_emotion(tmp_path: Path) -> None:
    world = DemoWorld(train=8, validation=4, test=4, workers=1, every_emotion=True)
    lines = [json.loads(line) for line in world.prepare(tmp_path)["train"].read_text().splitlines()]
    for four in (lines[:4], lines[4:]):
        assert len({(line["text"], line["speaker"], line["labels"]["pitch"]) for line in four}) == 1
        assert [line["labels"]["emotion"] for line in four] == list(CHOICES["emotion"])
    assert lines[0]["text"] != lines[4]["text"]


def test_the_encoder_loads_and_hears() -> None:
    encoder = WhisperEncoder(checkpoint="sottovoce:demo/backbones/encoder.safetensors")
    encoder.load()
    assert (encoder.dim, encoder.samples) == (192, 64_000)
    card = json.loads(resolve("sottovoce:demo/backbones/encoder.json").read_text())
    assert all(card["validation"][name] >= 0.9 for name in CHOICES)
    assert len(hashlib.sha256(encoder.fingerprint().encode()).hexdigest()) == 64


def test_the_conformer_loads_and_its_pretraining_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = ConformerEncoder(checkpoint="sottovoce:demo/backbones/conformer", **pretrain_conformer.NUMBERS)
    shipped.load()
    assert all(weight.dtype == torch.float32 for weight in shipped.parameters())
    card = json.loads(resolve("sottovoce:demo/backbones/conformer.json").read_text())
    assert card["encoder"] == pretrain_conformer.NUMBERS and card["validation"]["wer"] <= 0.05
    plan = pretrain_conformer.Plan(utterances=4, validation=2, steps=2, batch=2)
    made = pretrain_conformer.pretrain(tmp_path, plan)
    assert made["validation"]["wer"] > 0.5 and "step 2 " in capsys.readouterr().out
    again = ConformerEncoder(checkpoint=str(tmp_path / "conformer"), **pretrain_conformer.NUMBERS)
    again.load()
    assert again.fingerprint() != shipped.fingerprint()


def test_several_synthesizers_of_a_process_speak() -> None:
    """The library would hang, or crash, if it were initialised twice."""
    first, second = ESpeak(), ESpeak()
    said = [one.say("we found the lamp", voice="en-us+f2") for one in (first, second, first)]
    assert all(len(audio) > 5_000 and rate == 22_050 for audio, rate in said)
