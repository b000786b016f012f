"""Pre-train the demo's LLM, a Qwen2 chat model of some two million parameters, on text of the demo world.

    python -m sottovoce.demo pretrain-llm

It learns what a frozen instruction-following LLM brings along: to repeat, to answer questions about a style caption,
to reply to words in the light of a style, and to use what was said before. It never sees speech, and no sentence of
the validation or test split.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sottovoce.demo.lessons import ATTRIBUTES, COPYING, REPLYING, Lessons, Phase
from sottovoce.demo.optimization import optimize
from sottovoce.io import atomic_write

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (  # ChatML, as Qwen2 has it, without a default system prompt
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 1_152
PHASES = (
    Phase(steps=900, batch=64, lr=1.5e-3, context=0.0, copying=0.55, attributes=0.3, loose=0.3, noise=0.0),
    Phase(steps=1_100, batch=64, lr=1.2e-3, context=0.2, copying=0.25, attributes=0.4, loose=0.6, noise=1.0),
    Phase(steps=1_100, batch=48, lr=1e-3, context=0.6, copying=0.25, attributes=0.3, loose=0.6, noise=1.0),
)
HIDDEN, LAYERS, SEED = 256, 3, 11
_HALF = torch.cpu._is_avx512_bf16_supported()  # slower, not faster, where the CPU lacks the instructions
KINDS = tuple(dict.fromkeys((*ATTRIBUTES, *COPYING, *REPLYING)))
Score = Callable[[Any, PreTrainedTokenizerFast, Phase], dict[str, float]]


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
    """Train, write the folder `out/llm` and `out/llm.json`; returns the share of right answers to unseen sentences."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(Lessons(SEED, "train", PHASES[-1]))
    llm = Qwen2ForCausalLM(_config(tokenizer))
    # Tied to the output, or as small as usual (0.02), words that compete for one answer (male, female) end up alike.
    torch.nn.init.normal_(llm.get_input_embeddings().weight, std=0.05)  # type: ignore[arg-type]
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    scores: dict[str, float] = {}
    for number, phase in enumerate(phases):
        scores = train(llm, tokenizer, phase, Lessons(SEED + number, "train", phase), _score)
    save(out, "llm", llm, tokenizer, {"seed": SEED, "phases": [asdict(p) for p in phases], "validation": scores})
    return scores


def save(out: Path, name: str, llm: Any, tokenizer: PreTrainedTokenizerFast, card: dict[str, Any]) -> None:
    """Write the folder `out/name`, in float16, and the card `out/name.json`."""
    llm.half().save_pretrained(out / name)
    tokenizer.save_pretrained(out / name)
    atomic_write(out / f"{name}.json", json.dumps(card, indent=2) + "\n")


def train(
    llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase, lessons: Lessons, score: Score
) -> dict[str, float]:
    """Train through one phase, in place; returns the scores at its end."""
    stream = _batches(tokenizer, lessons, phase.batch)

    def loss() -> Tensor:
        ids, labels = next(stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
            words = _noisy(llm.get_input_embeddings()(ids), phase.noise)
            mask = (ids != tokenizer.pad_token_id).long()
            return cast(Tensor, llm(inputs_embeds=words, attention_mask=mask, labels=labels).loss)

    return optimize(
        llm.parameters(), loss, lambda: score(llm, tokenizer, phase),
        steps=phase.steps, lr=phase.lr, weight_decay=0.01, every=200,
    )  # fmt: skip


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


def _score(llm: Any, tokenizer: PreTrainedTokenizerFast, phase: Phase) -> dict[str, float]:
    return shares_right(llm, tokenizer, Lessons(SEED, "validation", phase), KINDS)


@torch.no_grad()
def shares_right(
    llm: Any, tokenizer: PreTrainedTokenizerFast, lessons: Lessons, kinds: tuple[str, ...], count: int = 60
) -> dict[str, float]:
    """For each kind of lesson, the share of answers of which every token is the likeliest after those before it."""
    llm.eval()
    scores = {}
    for kind in kinds:
        ids, labels = _batch(tokenizer, [_encode(tokenizer, *lessons.lesson(kind)) for _ in range(count)])
        best = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, :-1].argmax(-1)
        right = ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1)
        scores[kind] = round(float(right.float().mean()), 3)
    llm.train()
    return scores
