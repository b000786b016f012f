"""Pre-train the demo's LLM, a Qwen2 chat model of some two million parameters, on text of the demo world.

    python -m sottovoce.demo pretrain-llm

It learns what a frozen instruction-following LLM brings along: to repeat, to answer questions about a style caption,
to reply to words in the light of a style, and to use what was said before. It never sees speech, and no sentence of
the validation or test split.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sottovoce.demo.lessons import Lesson, Lessons, Phase
from sottovoce.demo.optimization import optimize
from sottovoce.io import atomic_write

END, _, STOP = MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
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
SIZES = dict(hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
SEED = 11
_HALF = torch.cpu._is_avx512_bf16_supported()  # slower, not faster, where the CPU lacks the instructions
ASKED = 60  # lessons of each kind in validation


def train_tokenizer(lessons: Lessons) -> PreTrainedTokenizerFast:
    """Byte-level BPE: the world's words are single tokens, and any other text can still be spelled."""
    texts = [text for turns, answer in islice(lessons, 6_000) for text in (*(t["content"] for t in turns), answer)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=MARKS, initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token=STOP, pad_token=END, chat_template=TEMPLATE, clean_up_tokenization_spaces=False
    )


def pretrain(out: Path, phases: tuple[Phase, ...] = PHASES) -> dict[str, float]:
    """Train, write the folder `out/llm` and `out/llm.json`; returns the share of right answers to unseen sentences."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(Lessons(SEED, "train", PHASES[-1]))
    known: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **SIZES}
    config = Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=False, **known)
    llm = Qwen2ForCausalLM(config)
    # Tied to the output, or as small as usual (0.02), words that compete for one answer (male, female) end up alike.
    torch.nn.init.normal_(llm.get_input_embeddings().weight, std=0.05)  # type: ignore[arg-type]
    print(f"{sum(p.numel() for p in llm.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    scores: dict[str, float] = {}
    for number, phase in enumerate(phases):
        scores = train(llm, tokenizer, Lessons(SEED + number, "train", phase), SEED)
    save(out, "llm", llm, tokenizer, {"seed": SEED, "phases": [asdict(p) for p in phases], "validation": scores})
    return scores


def save(out: Path, name: str, llm: Any, tokenizer: PreTrainedTokenizerFast, card: dict[str, Any]) -> None:
    """Write the folder `out/name`, in float16, and the card `out/name.json`."""
    llm.half().save_pretrained(out / name)
    tokenizer.save_pretrained(out / name)
    atomic_write(out / f"{name}.json", json.dumps(card, indent=2) + "\n")


def train(llm: Any, tokenizer: PreTrainedTokenizerFast, lessons: Lessons, seed: int) -> dict[str, float]:
    """Train through the phase of `lessons`, in place; returns the scores in the validation lessons of `seed`."""
    phase, batches = lessons.phase, _batches(tokenizer, lessons)

    def loss() -> Tensor:
        ids, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=_HALF):
            words = llm.get_input_embeddings()(ids)
            strength = torch.rand(len(words), 1, 1) * phase.noise * words.detach().std()
            words = words + torch.randn_like(words) * strength
            mask = (ids != tokenizer.pad_token_id).long()
            return cast(Tensor, llm(inputs_embeds=words, attention_mask=mask, labels=labels).loss)

    def score() -> dict[str, float]:
        return shares_right(llm, tokenizer, type(lessons)(seed, "validation", phase))

    return optimize(llm.parameters(), loss, score, steps=phase.steps, lr=phase.lr, weight_decay=0.01, every=200)


def _batches(tokenizer: PreTrainedTokenizerFast, lessons: Lessons) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of lessons of like length, for ever."""
    stream, size = iter(lessons), lessons.phase.batch
    while True:
        rows = sorted((_encode(tokenizer, next(stream)) for _ in range(size * 16)), key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), size))
        lessons.rng.shuffle(starts)
        yield from (_batch(tokenizer, rows[start : start + size]) for start in starts)


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """(tokens,) ids, and labels that cover the answer and its end-of-turn token."""
    prompt = tokenizer.apply_chat_template(lesson[0], tokenize=False, add_generation_prompt=True)
    before, answer = (tokenizer.backend_tokenizer.encode(text).ids for text in (prompt, lesson[1] + STOP))
    return torch.tensor(before + answer), torch.tensor([-100] * len(before) + answer)


def _batch(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(batch, tokens) ids and labels, right-padded."""
    ids, labels = ([row[part] for row in rows] for part in (0, 1))
    return pad_sequence(ids, True, int(tokenizer.pad_token_id)), pad_sequence(labels, True, -100)


@torch.no_grad()
def shares_right(llm: Any, tokenizer: PreTrainedTokenizerFast, lessons: Lessons) -> dict[str, float]:
    """For each kind of lesson, the share of answers of which every token is the likeliest after those before it."""
    llm.eval()
    scores = {}
    for kind in lessons.kinds:
        ids, labels = _batch(tokenizer, [_encode(tokenizer, lessons.lesson(kind)) for _ in range(ASKED)])
        best = llm(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits[:, :-1].argmax(-1)
        right = ((best == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1)
        scores[kind] = round(float(right.float().mean()), 3)
    llm.train()
    return scores
