"""A stage's steps made of hollow tensors: what they would compute, and what memory they would take."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from undertone.data.examples import Drawing, Example
from undertone.data.loader import Batch, collate
from undertone.data.sampler import Rows
from undertone.data.utterance import Utterance
from undertone.errors import MissingError
from undertone.lightning_modules.ear import BATCH
from undertone.lightning_modules.hardware import Work
from undertone.lightning_modules.hollow import Hollow, Living, hollow, observed
from undertone.lightning_modules.prompting import mark_speech
from undertone.lightning_modules.recipe import Recipe
from undertone.lightning_modules.speech_llm import SpeechLLM
from undertone.llms.chat import ChatFormat, ChatTurn, Placeholder, Segment
from undertone.llms.checkpoints import reach
from undertone.llms.prefixes import Known, Prefixes
from undertone.types import Frames

REPLY = "I see. That must have been quite a day for you; what do you think you will do about it next?"  # of 21 words
LETTERS = 4  # of a token, in English


@dataclass
class Cost:
    """What was counted: the work of each step that was rehearsed, and bytes.

    `peak` is the most that gradients, optimizer and all that a step makes took at once; of it `moments` are the
    optimizer's and `gradients` the gradients'. `checking` is the work of a validation step.
    """

    steps: list[Work]
    checking: Work
    peak: int
    moments: int
    gradients: int


class SupposedChat:
    """The chat format of an LLM whose tokenizer is not at hand: a token for four letters, and four for a turn."""

    stop_ids = frozenset([0])

    def prompt(self, turns: Sequence[ChatTurn]) -> list[Segment]:
        segments: list[Segment] = [[0] * 4]
        for turn in turns:
            segments.append([0] * 4)
            segments += [one if isinstance(one, Placeholder) else self._tokens(one) for one in turn.pieces]
        return _joined([*segments, [0] * 4])

    def response(self, turns: Sequence[ChatTurn], text: str) -> list[int]:
        return [*self._tokens(text), 0]

    def _tokens(self, text: str) -> list[int]:
        return [0] * math.ceil(len(text) / LETTERS)


def _joined(segments: list[Segment]) -> list[Segment]:
    out: list[Segment] = []
    for part in segments:
        if out and isinstance(part, list) and isinstance(out[-1], list):
            out[-1] = [*out[-1], *part]
        else:
            out.append(part)
    return out


class KnownPrefixes(Prefixes):
    """Constant text as if it had been read long ago, which it has in all steps but the first."""

    def _read(self, model: PreTrainedModel, prefix: tuple[int, ...], device: torch.device) -> Known:
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = config.num_key_value_heads, len(prefix), size
        known = Hollow(torch.empty(shape, dtype=model.dtype, device="meta"))
        return [(known, known)] * config.num_hidden_layers


def hollow_module(recipe: Recipe) -> tuple[SpeechLLM, bool]:
    """The recipe's whole module without a single weight, and whether its LLM's own tokenizer is at hand."""
    with torch.device("meta"):
        module = SpeechLLM(recipe.plain())
        module.encoder.build()
        module.llm.build()
    hollow(module)
    module.encoder.loaded, module.llm._prefixes = True, KnownPrefixes()
    try:
        tokenizer = reach(module.llm.checkpoint, module.llm._read_tokenizer)
    except MissingError:
        module.llm.chat = cast(ChatFormat, SupposedChat())
        return module, False
    module.llm.chat = ChatFormat(tokenizer, [])
    mark_speech(module.llm.chat, recipe.slots)
    return module, True


class Rehearsal:
    """Rehearses stages of one recipe, on hollow tensors.

    Args:
        recipe: whose.
        module: from `hollow_module`.
        utterances: of the training side.
        ranks: processes.
    """

    def __init__(self, recipe: Recipe, module: SpeechLLM, utterances: Sequence[Utterance], ranks: int) -> None:
        self.recipe, self.module, self.utterances = recipe, module, utterances
        self.kept = bool(recipe.data.cache) and not recipe.trains_encoder
        self._seconds = {Path(u.audio): u.seconds for u in utterances}
        alone = SimpleNamespace(reduce=lambda x, reduce_op: x)
        module._trainer = cast(Any, SimpleNamespace(world_size=ranks, global_rank=0, global_step=0, strategy=alone))
        module.log = lambda *_, **__: None  # type: ignore[method-assign]

    def stage(self, name: str, drawing: Drawing, batches: Sequence[Rows]) -> Cost:
        """Make a training step of each batch; the first should be the largest: the peak is its, with moments there."""
        module = self.module
        module.begin(name, len(batches))
        made = [self._batch(drawing, rows, self.recipe.stages[name].draws) for rows in batches]
        optimizer = module.configure_optimizers()["optimizer"]
        living, steps, checking = Living(), [], Work()
        with self._autocast():
            self._step(made[0], optimizer)  # makes the moments, which stay
            for batch in made:
                steps.append(Work())
                with observed(steps[-1]), observed(living) if batch is made[0] else nullcontext():
                    self._step(batch, optimizer)
            module.eval()
            with torch.no_grad(), observed(checking):
                module.loss(made[len(made) // 2])
        moments = _bytes(s for state in optimizer.state.values() for s in state.values() if isinstance(s, Hollow))
        gradients = _bytes(iter(module.learning()))
        return Cost(steps, checking, living.most + moments, moments, gradients)

    def listening(self) -> Work:
        """The encoder's work for `BATCH` clips of mean length."""
        mean = sum(u.seconds for u in self.utterances) / len(self.utterances)
        samples = int(mean * self.module.encoder.sample_rate)
        audio = Hollow(torch.empty(BATCH, samples, device="meta"))
        work = Work()
        with torch.no_grad(), observed(work):
            self.module.encoder(audio, torch.full((BATCH,), samples))
        return work

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        self.module.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.learning(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def _batch(self, drawing: Drawing, rows: Rows, draws: int) -> Batch:
        drawn = [drawing(self.utterances[row], rows.epoch, k, self.utterances[row].only)
                 for row in rows.numbers for k in range(draws)]  # fmt: skip
        batch = collate([_answered(example) for example in drawn if example is not None], self._heard)
        return replace(batch, audio=Frames(Hollow(batch.audio.x), batch.audio.lengths))

    def _heard(self, clip: Path) -> Tensor:
        """(frames, dim) where they come from the cache, else (samples,); a clip of an earlier turn is like another."""
        encoder, seconds = self.module.encoder, self._seconds.get(clip) or next(iter(self._seconds.values()))
        if self.kept:
            return torch.empty(math.ceil(seconds * encoder.frame_rate), encoder.dim, device="meta")
        return torch.empty(int(seconds * encoder.sample_rate), device="meta")

    def _autocast(self) -> AbstractContextManager[Any]:
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = mixed.get(str(self.recipe.trainer.get("precision")))
        return torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()


def _answered(example: Example) -> Example:
    """An example with a target: where the LLM would make it, a reply of usual length."""
    return replace(example, target=REPLY) if example.target is None else example


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
