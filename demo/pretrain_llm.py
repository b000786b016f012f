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

from undertone.data.tasks import TASKS, AttributeTask, caption_from
from undertone.demo.world import (
    CHOICES,
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
VOCABULARY = 1024
ATTRIBUTES = tuple(CHOICES)
OTHERS = ("asr", "asr", "dialogue", "dialogue", "follow-up")


@dataclass(frozen=True)
class Phase:
    """Some steps of lessons.

    `context` is the share of chats that have something before the question, `attributes` the share of questions about a
    style caption, and `about` the attributes that are asked for. Two words that only ever compete for one answer end up
    with one embedding (`male` and `female`: cosine 0.99, answers at chance), from which there is no gradient away:
    `apart` drives such a pair apart before the first step.
    """

    steps: int
    batch: int
    lr: float
    context: float
    attributes: float
    about: tuple[str, ...] = tuple(CHOICES)
    apart: tuple[str, ...] = ()


PHASES = (  # what the shipped weights went through, in this order
    Phase(steps=1_300, batch=64, lr=1.5e-3, context=0.0, attributes=0.3),  # short: to copy is learned from these
    Phase(steps=700, batch=32, lr=1e-3, context=0.9, attributes=0.3),
    Phase(steps=900, batch=64, lr=1.2e-3, context=0.4, attributes=0.65),
    Phase(steps=500, batch=128, lr=2e-3, context=0.0, attributes=1.0, about=("gender", "pitch", "energy")),
    Phase(steps=500, batch=64, lr=1e-3, context=0.6, attributes=0.4),
    Phase(steps=100, batch=96, lr=1.5e-3, context=0.0, attributes=1.0, about=("gender",), apart=("male", "female")),
    Phase(steps=250, batch=64, lr=8e-4, context=0.6, attributes=0.5),
)
HIDDEN, LAYERS, SEED = 256, 3, 11


class Lessons:
    """Draws chats; every wording that the tasks' prompt files hold is seen in training."""

    def __init__(self, seed: int, split: str, phase: Phase) -> None:
        self.rng, self.split, self.phase = random.Random(f"{seed} {split}"), split, phase
        nodes: dict[str, dict[str, list[str]]] = {"asr": {}, "dialogue": {}}
        nodes |= {name: {"choices": list(CHOICES[name])} for name in ATTRIBUTES}
        self.tasks = {name: TASKS.build({"type": name, **knobs}) for name, knobs in nodes.items()}
        self.wordings = {name: task.instructions() for name, task in self.tasks.items()}

    def __iter__(self) -> Iterator[tuple[list[dict[str, str]], str]]:
        """Yield (messages, answer) for ever."""
        while True:
            about_style = self.rng.random() < self.phase.attributes
            yield self._lesson(self.rng.choice(self.phase.about if about_style else OTHERS))

    def _lesson(self, name: str) -> tuple[list[dict[str, str]], str]:
        rng = self.rng
        talk, who = draw_small_talk(rng) if rng.random() < self.phase.context else ([], None)
        talk = [*talk, *self._spoken(who)]
        sentence, style = draw_sentence(rng, self.split), draw_style(rng)
        if name == "asr":
            user, answer = styled(sentence, style if rng.random() < 0.6 else None), sentence
        elif name in ATTRIBUTES:
            user, answer = styled(sentence if rng.random() < 0.6 else None, style), self._answer(name, style)
        elif name == "dialogue":
            user, answer = self._turn(sentence, style, who)
        else:
            talk = [*talk, Exchange(styled(sentence, style), reply(sentence, style.emotion, who))]
            question = follow_up(rng, sentence, style, who)
            name, user, answer = "dialogue", question.user, question.assistant
        return messages(rng.choice(self.wordings[name]), [*talk], user), answer

    def _answer(self, attribute: str, style: Style) -> str:
        return cast(AttributeTask, self.tasks[attribute]).sentence.format(label=getattr(style, attribute))

    def _spoken(self, who: str | None) -> list[Exchange]:
        """An earlier spoken turn, in a quarter of the chats with context."""
        if self.rng.random() > 0.25 * self.phase.context:
            return []
        sentence, style = draw_sentence(self.rng, self.split), draw_style(self.rng)
        return [Exchange(*self._turn(sentence, style, who))]

    def _turn(self, sentence: str, style: Style, who: str | None) -> tuple[str, str]:
        known = self.rng.random()
        if known < 0.15:  # the words alone
            return styled(sentence, None), reply(sentence, "neutral", who)
        if known < 0.3:  # the style alone
            return styled(None, style), reply(None, style.emotion, who)
        return styled(sentence, style), reply(sentence, style.emotion, who)


def styled(sentence: str | None, style: Style | None) -> str:
    """A user turn in text: the caption and the transcript, as far as they are known, on lines of their own."""
    return "\n".join(filter(None, [caption_from(vars(style)) if style else None, sentence]))


def messages(instruction: str, talk: list[Exchange], user: str) -> list[dict[str, str]]:
    turns = [("system", instruction)]
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
    tokenizer = train_tokenizer(Lessons(SEED, "train", PHASES[1]))
    llm = Qwen2ForCausalLM(_config(tokenizer))
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    scores: dict[str, float] = {}
    for number, phase in enumerate(phases):
        scores = _train(llm, tokenizer, phase, Lessons(SEED + number, "train", phase))
    llm.half().save_pretrained(out / "llm")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(out / "llm")
    return scores


def _train(llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase, lessons: Lessons) -> dict[str, float]:
    if phase.apart:
        words = [f"Ġ{word}" for word in phase.apart]  # as the tokenizer writes a word after a space
        _drive_apart(llm.get_input_embeddings().weight, cast(list[int], tokenizer.convert_tokens_to_ids(words)))
    optimizer = torch.optim.AdamW(llm.parameters(), phase.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.lr, phase.steps, pct_start=0.1)
    stream, start, scores = _batches(tokenizer, lessons, phase.batch), time.time(), dict[str, float]()
    for step in range(phase.steps):
        ids, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            loss = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            scores = {"answers right": _score(llm, tokenizer, phase)}
            print(f"step {step + 1}  loss {loss.item():.4f}  {scores}  {time.time() - start:.0f} s", flush=True)
    return scores


@torch.no_grad()
def _drive_apart(table: Tensor, pair: list[int]) -> None:
    """Move two rows of (tokens, dim) half a unit each, in opposite random directions."""
    direction = torch.nn.functional.normalize(torch.randn(table.shape[1]), dim=0) / 2
    table[pair[0]] += direction
    table[pair[1]] -= direction


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 5 // 2,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
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
def _score(llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase) -> float:
    """Share of answers whose every token is the likeliest, given the right ones before it: greedy decoding's test."""
    stream = iter(Lessons(SEED, "validation", phase))
    right = []
    llm.eval()
    for _ in range(4):
        ids, labels = _batch(tokenizer, [_encode(tokenizer, *next(stream)) for _ in range(100)])
        best = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, :-1].argmax(-1)
        right += ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1).tolist()
    llm.train()
    return sum(right) / len(right)
