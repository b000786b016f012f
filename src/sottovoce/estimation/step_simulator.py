"""A stage's steps made of hollow tensors: what they would compute, and what memory they would take."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sottovoce.config.recipe import Recipe
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.batches import Batch, collate
from sottovoce.data.examples import Example, ExampleSampler
from sottovoce.data.utterance import Utterance
from sottovoce.errors import MissingError
from sottovoce.estimation.hardware import OpCounter
from sottovoce.estimation.meta_tensor import MetaTensor, PeakMemory, hollow, observed
from sottovoce.estimation.placeholders import SupposedChat
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatFormat
from sottovoce.llms.hub_checkpoints import HUB, SETTINGS
from sottovoce.llms.prefix_cache import KeyValues, PrefixCache
from sottovoce.training.audio_reader import BATCH
from sottovoce.training.llm_targets import BATCH as PROMPTS
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.spoken_prompt import mark_speech

REPLY = "I see. That must have been quite a day for you; what do you think you will do about it next?"  # of 21 words


@dataclass
class Cost:
    """What was counted: the work of each step that was rehearsed, and bytes.

    `peak` is the most that gradients, optimizer and all that a step makes took at once; of it `moments` are the
    optimizer's and `gradients` the gradients'. `checking` is the work of a validation step.
    """

    steps: list[OpCounter]
    checking: OpCounter
    peak: int
    moments: int
    gradients: int


class SimulatedPrefixCache(PrefixCache):
    """Constant text as if it had been read long ago, which it has in all steps but the first."""

    def _key_values(self, model: PreTrainedModel, prefix: tuple[int, ...], device: torch.device) -> KeyValues:
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = config.num_key_value_heads, len(prefix), size
        known = MetaTensor(torch.empty(shape, dtype=model.dtype, device="meta"))
        return [(known, known)] * config.num_hidden_layers


def hollow_module(recipe: Recipe) -> SpeechLLM:
    """The recipe's whole module without a single weight."""
    module = unfilled_module(recipe, torch.device("meta"))
    hollow(module)
    module.cpu()  # where hollow tensors say they are
    module.llm.prefix_cache = SimulatedPrefixCache()
    return module


def unfilled_module(recipe: Recipe, device: torch.device) -> SpeechLLM:
    """The recipe's whole module on a device, with weights of no worth; the LLM's own tokenizer if that is at hand."""
    with device:
        module = SpeechLLM(recipe)
        module.encoder.build()
        module.llm.build()
    module.encoder.loaded = True
    try:
        module.llm.tokenizer = module.llm.read_tokenizer(HUB.snapshot(module.llm.checkpoint, SETTINGS))
    except MissingError:
        module.llm.chat = cast(ChatFormat, SupposedChat())
        return module
    module.llm.chat = ChatFormat(module.llm.tokenizer, [])
    mark_speech(module.llm.chat, recipe.slots)
    return module


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

    def stage(self, name: str, drawing: ExampleSampler, batches: Sequence[Rows]) -> Cost:
        """Make a training step of each batch; the first should be the largest: the peak is its, with moments there."""
        optimizer = self.begin(name, len(batches))
        made = [self.batch(name, drawing, rows) for rows in batches]
        living, steps, checking = PeakMemory(), [], OpCounter()
        self.step(made[0], optimizer)  # makes the moments, which stay
        for batch in made:
            steps.append(OpCounter())
            with observed(steps[-1]), observed(living) if batch is made[0] else nullcontext():
                self.step(batch, optimizer)
        with observed(checking):
            self.check(made[len(made) // 2])
        moments = _bytes(s for state in optimizer.state.values() for s in state.values() if isinstance(s, MetaTensor))
        gradients = _bytes(iter(self.module.trainable_parameters()))
        return Cost(steps, checking, living.most + moments, moments, gradients)

    def listening(self) -> OpCounter:
        """The encoder's work for `BATCH` clips of mean length."""
        work = OpCounter()
        with observed(work):
            self.listen()
        return work

    def begin(self, stage: str, steps: int) -> torch.optim.Optimizer:
        self.module.start_stage(stage, steps)
        return self.module.configure_optimizers()["optimizer"]

    def batch(self, stage: str, drawing: ExampleSampler, rows: Rows) -> Batch:
        """The rows' examples, with clips of their lengths."""
        batch = collate([_answered(example) for example in self.drawn(stage, drawing, rows)], self._heard)
        return replace(batch, audio=Frames(self.clips(*batch.audio.x.shape), batch.audio.lengths))

    def drawn(self, stage: str, drawing: ExampleSampler, rows: Rows) -> list[Example]:
        """The rows' examples; those that the LLM is to answer have no target yet."""
        made = [drawing(self.utterances[row], rows.epoch, k)
                for row in rows.numbers for k in range(self.recipe.stages[stage].tasks_per_utterance)]  # fmt: skip
        return [example for example in made if example is not None]

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        """Forward, backward, clipping, optimizer."""
        with self._autocast():
            loss = self.module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.trainable_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def check(self, batch: Batch) -> None:
        """A step of validation."""
        self.module.eval()
        with self._autocast():
            self.module.loss(batch)
        self.module.train()

    @torch.no_grad()
    def listen(self) -> None:
        """The encoder hears `BATCH` clips of mean length."""
        mean = sum(u.seconds for u in self.utterances) / len(self.utterances)
        samples = int(mean * self.module.encoder.sample_rate)
        self.module.encoder(self.clips(BATCH, samples), torch.full((BATCH,), samples))

    def clips(self, *shape: int) -> Tensor:
        """What is heard. Waveforms, (clips, samples), are real: some encoders take them through NumPy first."""
        return torch.zeros(*shape) if len(shape) == 2 else MetaTensor(torch.empty(*shape, device="meta"))

    def _heard(self, clip: Path) -> Tensor:
        """(frames, dim) where they come from the cache, else (samples,); a clip of an earlier turn is like another."""
        encoder, seconds = self.module.encoder, self._seconds.get(clip) or next(iter(self._seconds.values()))
        if self.kept:
            return torch.empty(math.ceil(seconds * encoder.frame_rate), encoder.dim, device="meta")
        return torch.empty(int(seconds * encoder.sample_rate), device="meta")

    def _autocast(self) -> AbstractContextManager[Any]:
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = mixed.get(str(self.recipe.trainer.get("precision")))
        return torch.autocast(self.module.device.type, dtype=dtype) if dtype else nullcontext()


class Trial(Rehearsal):
    """Makes steps with numbers on the machine at hand, and times them.

    Args: see `Rehearsal`; the module is from `unfilled_module`, on the device.
    """

    def times(self, stage: str, drawing: ExampleSampler, batches: Sequence[Rows]) -> tuple[float, float]:
        """Seconds of a training step, drawing and collating included, and of a step of validation."""
        optimizer = self.begin(stage, len(batches))
        training = []
        for rows in batches:
            training.append(self._seconds_of(lambda: self.step(self.batch(stage, drawing, rows), optimizer)))  # noqa: B023
        batch = self.batch(stage, drawing, batches[len(batches) // 2])
        return mean(training), self._seconds_of(lambda: self.check(batch))

    def reply(self, stage: str, drawing: ExampleSampler, batches: Sequence[Rows]) -> None:
        """Have the LLM answer as many prompts at once as before a stage, to their full lengths, for the memory of it.

        Where its tokenizer is not at hand nothing is made.
        """
        llm, slots = self.module.llm, {name: slot.text for name, slot in self.recipe.slots.items()}
        if isinstance(llm.chat, ChatFormat):
            waiting = [e for rows in batches for e in self.drawn(stage, drawing, rows) if e.target is None][:PROMPTS]
            prompts = [llm.embed(llm.chat.prompt(teacher_dialogue(example, slots)), {}) for example in waiting]
            llm.generate(prompts, self.recipe.evaluation.max_new_tokens)

    def listening_time(self) -> float:
        """Seconds for `BATCH` clips of mean length."""
        return self._seconds_of(self.listen)

    def clips(self, *shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, device=self.module.device)

    def _seconds_of(self, call: Callable[[], None]) -> float:
        """Of the second time: the first fills what is kept and chooses kernels."""
        taken = 0.0
        for _ in range(2):
            begun = time.perf_counter()
            call()
            if self.module.device.type == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - begun
        return taken


def _answered(example: Example) -> Example:
    """An example with a target: where the LLM would make it, a reply of usual length."""
    return replace(example, target=REPLY) if example.target is None else example


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
