"""Pre-train the demo's LLM, a Qwen2 chat model of some two million parameters, on text of the demo world.

    undertone demo pretrain --part llm --out demo/backbones

It learns what a frozen instruction-following LLM brings along: to repeat, to answer questions about a style caption,
to reply to words in the light of a style, and to use what was said before. It never sees speech, and no sentence of
the validation or test split.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from undertone.data.tasks import PROMPTS, TASKS, AttributeTask, caption_from
from undertone.data.wordings import read_wordings
from undertone.demo.world import (
    ADJECTIVES,
    CHOICES,
    NAMES,
    NOUNS,
    PLACES,
    VERBS,
    Exchange,
    Style,
    draw_sentence,
    draw_small_talk,
    draw_style,
    follow_up,
    reply,
)

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (  # ChatML, as Qwen2 has it, without a default system prompt
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 1_152
AGES = ("child", "adult")  # known to the LLM; the demo's voices are all of one age
ATTRIBUTES = (*CHOICES, "age")
COPYING = ("asr", "words")
REPLYING = ("dialogue", "dialogue", "dialogue", "follow-up", "response", "caption", "repeat", "tone")
ALIGNMENT = PROMPTS / "speech_emotion_llama"  # the wordings of Kang et al. (2024), for the last four
ALIGNED = ("companion", "asr", "caption", "emotion")
LABELS = [label for labels in (*CHOICES.values(), AGES) for label in labels]
LEXICON = sorted({*VERBS, *ADJECTIVES, *NOUNS, *PLACES, *NAMES, *LABELS})


@dataclass(frozen=True)
class Phase:
    """Some steps of lessons.

    `context` is the share of chats that have something before the question, `copying` the share of lessons that repeat
    words, `attributes` the share of questions about a style caption, `loose` the share of captions and transcripts that
    are written loosely, and `noise` the most noise on word embeddings, in their standard deviations (NEFTune, Jain et
    al., ICLR 2024, with a strength drawn per chat).
    """

    steps: int
    batch: int
    lr: float
    context: float
    copying: float
    attributes: float
    loose: float
    noise: float


PHASES = (
    Phase(steps=900, batch=64, lr=1.5e-3, context=0.0, copying=0.55, attributes=0.3, loose=0.3, noise=0.0),
    Phase(steps=1_100, batch=64, lr=1.2e-3, context=0.2, copying=0.25, attributes=0.4, loose=0.6, noise=1.0),
    Phase(steps=1_100, batch=48, lr=1e-3, context=0.6, copying=0.25, attributes=0.3, loose=0.6, noise=1.0),
)
HIDDEN, LAYERS, SEED = 256, 3, 11

Lesson = tuple[list[dict[str, str]], str]  # messages, answer


class Lessons:
    """Draws chats; every wording that the tasks' prompt files hold is seen in training.

    A large LLM reads sloppy text as well as neat text. This one must be taught to: some captions come as a list in any
    order, some transcripts with words said several times over.
    """

    def __init__(self, seed: int, split: str, phase: Phase) -> None:
        self.rng, self.split, self.phase = random.Random(f"{seed} {split}"), split, phase
        nodes: dict[str, dict[str, list[str]]] = {"asr": {}, "dialogue": {}, "age": {"choices": list(AGES)}}
        nodes |= {name: {"choices": list(choices)} for name, choices in CHOICES.items()}
        self.tasks = {name: TASKS.build({"type": name, **knobs}) for name, knobs in nodes.items()}
        self.wordings = {name: task.instructions() for name, task in self.tasks.items()}
        fields = {"choices": ", ".join(CHOICES["emotion"])}
        self.aligned = {name: read_wordings(ALIGNMENT / f"{name}.txt", fields)[0] for name in ALIGNED}

    def __iter__(self) -> Iterator[Lesson]:
        """Yield lessons for ever."""
        while True:
            p = self.phase
            shares = (p.copying, p.attributes, 1 - p.copying - p.attributes)
            yield self.lesson(self.rng.choice(self.rng.choices((COPYING, ATTRIBUTES, REPLYING), shares)[0]))

    def lesson(self, kind: str) -> Lesson:
        """A lesson of one kind: an attribute, or one of COPYING or REPLYING."""
        rng = self.rng
        sentence, style = draw_sentence(rng, self.split), draw_style(rng)
        if kind in ("response", "caption", "repeat", "tone"):
            return self._tagged(kind, sentence, style.emotion)
        talk, who = draw_small_talk(rng) if rng.random() < self.phase.context else ([], None)
        talk = [*talk, *self._spoken(who)]
        if kind in ATTRIBUTES:
            labels = self._labels(style, aged=kind == "age")
            user, answer = self._styled(sentence if rng.random() < 0.6 else None, labels), self._answer(kind, labels)
        elif kind == "dialogue":
            user, answer = self._turn(sentence, style, who)
        elif kind == "follow-up":
            talk = [*talk, Exchange(self._styled(sentence, self._labels(style)), reply(sentence, style.emotion, who))]
            question = follow_up(rng, sentence, style, who)
            kind, user, answer = "dialogue", question.user, question.assistant
        else:
            said = sentence if kind == "asr" else " ".join(rng.sample(LEXICON, k=rng.randint(3, 7)))
            kind, user, answer = "asr", self._styled(said, self._labels(style) if rng.random() < 0.6 else None), said
        return messages(rng.choice(self.wordings[kind]), talk, user), answer

    def _tagged(self, kind: str, sentence: str, emotion: str) -> Lesson:
        """As SpeechEmotionLlama asks: a tag before the words, no caption, and the question in the same turn."""
        tagged = kind == "tone" or self.rng.random() < 0.7
        said = self._stretched(sentence) if self._loosely() else sentence
        user = f"<{emotion}> {said}" if tagged else said
        feeling = emotion if tagged else "neutral"
        if kind == "response":
            shown = [self.aligned["companion"]] if self.rng.random() < 0.5 else []
            return messages("".join(shown), [], user), reply(sentence, feeling)
        prompt, answer = {
            "caption": (
                "caption",
                f"A {feeling} speaker says: {sentence}." if tagged else f"Someone says: {sentence}.",
            ),
            "repeat": ("asr", sentence),
            "tone": ("emotion", emotion),
        }[kind]
        return messages("", [], f"{self.aligned[prompt]} {user}"), answer

    def _labels(self, style: Style, aged: bool = False) -> dict[str, str]:
        """The labels of a caption; some tell the age, too."""
        age = {"age": self.rng.choice(AGES)} if aged or self.rng.random() < 0.2 else {}
        return {**vars(style), **age}

    def _answer(self, attribute: str, labels: dict[str, str]) -> str:
        return cast(AttributeTask, self.tasks[attribute]).answer(labels[attribute])

    def _spoken(self, who: str | None) -> list[Exchange]:
        """An earlier spoken turn, in a quarter of the chats with context."""
        if self.rng.random() > 0.25 * self.phase.context:
            return []
        sentence, style = draw_sentence(self.rng, self.split), draw_style(self.rng)
        return [Exchange(*self._turn(sentence, style, who))]

    def _turn(self, sentence: str, style: Style, who: str | None) -> tuple[str, str]:
        labels, known = self._labels(style), self.rng.random()
        if known < 0.15:  # the words alone
            return self._styled(sentence, None), reply(sentence, "neutral", who)
        if known < 0.3:  # the style alone
            return self._styled(None, labels), reply(None, style.emotion, who)
        return self._styled(sentence, labels), reply(sentence, style.emotion, who)

    def _styled(self, sentence: str | None, labels: dict[str, str] | None) -> str:
        """A user turn in text: the caption and the transcript, as far as they are known, on lines of their own."""
        caption = labels and (self._listed(labels) if self._loosely() else caption_from(labels))
        said = sentence and (self._stretched(sentence) if self._loosely() else sentence)
        return "\n".join(filter(None, [caption, said]))

    def _loosely(self) -> bool:
        return self.rng.random() < self.phase.loose

    def _listed(self, labels: dict[str, str]) -> str:
        """The words of the style in any order, some more than once, with or without what they are about."""
        named = self.rng.random() < 0.3
        parts = [f"{label} {name}" if named else label for name, label in labels.items()]
        parts += self.rng.choices(parts, k=self.rng.randint(0, 4))
        self.rng.shuffle(parts)
        return self.rng.choice((" ", ", ")).join(parts)

    def _stretched(self, sentence: str) -> str:
        """Each word one to four times."""
        return " ".join(word for word in sentence.split() for _ in range(self.rng.randint(1, 4)))


def messages(instruction: str, talk: list[Exchange], user: str) -> list[dict[str, str]]:
    turns = [("system", instruction)] if instruction else []
    for exchange in talk:
        turns += [("user", exchange.user), ("assistant", exchange.assistant)]
    return [{"role": role, "content": content} for role, content in [*turns, ("user", user)]]


def train_tokenizer(lessons: Lessons) -> PreTrainedTokenizerFast:
    """Byte-level BPE: the world's words are single tokens, and any other text can still be spelled."""
    stream = iter(lessons)
    texts = []
    for _ in range(6_000):
        turns, answer = next(stream)
        texts += [turn["content"] for turn in turns] + [answer]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def pretrain(out: Path, phases: tuple[Phase, ...] = PHASES) -> dict[str, float]:
    """Train, write the folder `out/llm`, and return the share of answers that come out right on unseen sentences."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(Lessons(SEED, "train", PHASES[-1]))
    llm = Qwen2ForCausalLM(_config(tokenizer))
    # Tied to the output, or as small as usual (0.02), words that compete for one answer (male, female) end up alike.
    torch.nn.init.normal_(llm.get_input_embeddings().weight, std=0.05)  # type: ignore[arg-type]
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    scores: dict[str, float] = {}
    for number, phase in enumerate(phases):
        scores = _train(llm, tokenizer, phase, Lessons(SEED + number, "train", phase))
    llm.half().save_pretrained(out / "llm")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(out / "llm")
    return scores


def _train(llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase, lessons: Lessons) -> dict[str, float]:
    optimizer = torch.optim.AdamW(llm.parameters(), phase.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.lr, phase.steps, pct_start=0.1)
    stream, start, scores = _batches(tokenizer, lessons, phase.batch), time.time(), dict[str, float]()
    for step in range(phase.steps):
        ids, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            words = _noisy(llm.get_input_embeddings()(ids), phase.noise)
            loss = llm(inputs_embeds=words, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == phase.steps:
            scores = _score(llm, tokenizer, phase)
            print(f"step {step + 1}  loss {loss.item():.4f}  {scores}  {time.time() - start:.0f} s", flush=True)
    return scores


def _noisy(words: Tensor, most: float) -> Tensor:
    """(batch, tokens, dim) word embeddings with noise of `most` standard deviations or less, drawn per row."""
    strength = torch.rand(len(words), 1, 1) * most * words.detach().std()
    return words + torch.randn_like(words) * strength


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 5 // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _batches(tokenizer: PreTrainedTokenizerFast, lessons: Lessons, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of lessons of like length, for ever."""
    stream = iter(lessons)
    while True:
        rows = sorted(
            (_encode(tokenizer, *next(stream)) for _ in range(batch * 16)), key=lambda row: len(row[0] + row[1])
        )
        starts = list(range(0, len(rows), batch))
        lessons.rng.shuffle(starts)
        yield from (_batch(tokenizer, rows[start : start + batch]) for start in starts)


def _encode(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], answer: str
) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    encode = tokenizer.backend_tokenizer.encode
    return encode(prompt).ids, encode(answer + STOP).ids


def _batch(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(batch, tokens) ids, right-padded, and labels that cover the answer and its end-of-turn token."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


@torch.no_grad()
def _score(llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase, count: int = 60) -> dict[str, float]:
    """For each kind of lesson, the share of answers of which every token is the likeliest after those before it."""
    lessons = Lessons(SEED, "validation", phase)
    llm.eval()
    scores = {}
    for kind in dict.fromkeys((*ATTRIBUTES, *COPYING, *REPLYING)):
        ids, labels = _batch(tokenizer, [_encode(tokenizer, *lessons.lesson(kind)) for _ in range(count)])
        best = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, :-1].argmax(-1)
        right = ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1)
        scores[kind] = round(float(right.float().mean()), 3)
    llm.train()
    return scores
