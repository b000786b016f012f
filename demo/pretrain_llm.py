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
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from undertone.data.tasks import TASKS, caption_from
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


@dataclass(frozen=True)
class Settings:
    steps: int = 1_800
    batch: int = 32
    lr: float = 2e-3
    hidden: int = 256
    layers: int = 3
    seed: int = 11


class Lessons:
    """Draws chats; every wording that the tasks' prompt files hold is seen in training."""

    def __init__(self, seed: int, split: str) -> None:
        self.rng, self.split = random.Random(f"{seed} {split}"), split
        nodes = {"asr": {}, "dialogue": {}} | {name: {"choices": list(CHOICES[name])} for name in ATTRIBUTES}
        self.tasks = {name: TASKS.build({"type": name, **knobs}) for name, knobs in nodes.items()}
        self.wordings = {name: task.instructions() for name, task in self.tasks.items()}

    def __iter__(self) -> Iterator[tuple[list[dict[str, str]], str]]:
        """Yield (messages, answer) for ever."""
        while True:
            name = self.rng.choice(("asr", "asr", "attribute", "attribute", "dialogue", "dialogue", "follow-up"))
            yield self._lesson(self.rng.choice(ATTRIBUTES) if name == "attribute" else name)

    def _lesson(self, name: str) -> tuple[list[dict[str, str]], str]:
        rng = self.rng
        talk, who = draw_small_talk(rng)
        talk = [*talk, *self._spoken(who)]
        sentence, style = draw_sentence(rng, self.split), draw_style(rng)
        if name == "asr":
            user, answer = styled(sentence, style if rng.random() < 0.6 else None), sentence
        elif name in ATTRIBUTES:
            user, answer = styled(sentence if rng.random() < 0.6 else None, style), self._answer(name, style)
        else:
            user, answer = self._turn(sentence, style, who)
        if name == "follow-up":
            exchange = follow_up(rng, sentence, style, who)
            talk = [*talk, Exchange(user, answer)]
            name, user, answer = "dialogue", exchange.user, exchange.assistant
        return messages(rng.choice(self.wordings[name]), [*talk], user), answer

    def _answer(self, attribute: str, style: Style) -> str:
        return self.tasks[attribute].sentence.format(label=getattr(style, attribute))

    def _spoken(self, who: str | None) -> list[Exchange]:
        """An earlier spoken turn, in a quarter of the chats."""
        if self.rng.random() > 0.25:
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def pretrain(out: Path, settings: Settings | None = None) -> dict[str, float]:
    """Train, write the folder `out/llm`, and return the share of answers that come out right on unseen sentences."""
    settings = settings or Settings()
    torch.manual_seed(settings.seed)
    lessons = Lessons(settings.seed, "train")
    tokenizer = train_tokenizer(Lessons(settings.seed, "train"))
    llm = Qwen2ForCausalLM(_config(settings, tokenizer))
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(llm.parameters(), settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    stream, start, scores = _batches(tokenizer, lessons, settings.batch), time.time(), {}
    for step in range(settings.steps):
        ids, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            loss = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == settings.steps:
            scores = {"answers right": _score(llm, tokenizer, settings.seed)}
            print(f"step {step + 1}  loss {loss.item():.4f}  {scores}  {time.time() - start:.0f} s", flush=True)
    llm.half().save_pretrained(out / "llm")
    tokenizer.save_pretrained(out / "llm")
    return scores


def _config(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 5 // 2,
        num_hidden_layers=settings.layers,
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
        rows = sorted((_encode(tokenizer, *next(stream)) for _ in range(batch * 16)), key=lambda row: len(row[0] + row[1]))
        starts = list(range(0, len(rows), batch))
        lessons.rng.shuffle(starts)
        yield from (_batch(tokenizer, rows[start : start + batch]) for start in starts)


def _encode(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
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
def _score(llm: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Share of answers whose every token is the likeliest, given the right ones before it: greedy decoding's own test."""
    stream = iter(Lessons(seed, "validation"))
    right = []
    llm.eval()
    for _ in range(4):
        ids, labels = _batch(tokenizer, [_encode(tokenizer, *next(stream)) for _ in range(100)])
        best = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, :-1].argmax(-1)
        right += ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1).tolist()
    llm.train()
    return sum(right) / len(right)
