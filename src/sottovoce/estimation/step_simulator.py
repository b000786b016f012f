"""Simulated training steps, on MetaTensors: their operations and memory; and real ones, timed on this machine."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sottovoce.config.recipe import Recipe
from sottovoce.data.batch_sampler import Rows
from sottovoce.data.examples import Batch, Example, ExampleSampler, collate
from sottovoce.data.utterance import Utterance
from sottovoce.encoders.cache_formats import stored_bytes
from sottovoce.errors import MissingError
from sottovoce.estimation.hardware import OpCounter
from sottovoce.estimation.meta_tensor import MetaTensor, PeakMemory, observed, to_meta_tensors
from sottovoce.estimation.placeholders import PlaceholderChat
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.chat_template import ChatFormat
from sottovoce.llms.hub_checkpoints import HUB, SETTINGS
from sottovoce.llms.row_batches import KeyValues, PrefixCache
from sottovoce.training.llm_targets import BATCH as PROMPTS
from sottovoce.training.llm_targets import teacher_dialogue
from sottovoce.training.preparation import PART as BATCH
from sottovoce.training.spoken_prompt import mark_speech

REPLY = "I see. That must have been quite a day for you; what do you think you will do about it next?"  # of 21 words


@dataclass
class Cost:
    """Operations of each simulated step and of a validation step, and bytes."""

    steps: list[OpCounter]
    validation: OpCounter
    peak: int  # the most that gradients, optimizer and all that a step makes took at once
    moments: int  # of it, the optimizer's
    gradients: int  # of it


class SimulatedPrefixCache(PrefixCache):
    """Constant text as if it had been read long ago, which it has in all steps but the first."""

    def _key_values(self, model: PreTrainedModel, prefix: tuple[int, ...], device: torch.device) -> KeyValues:
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = config.num_key_value_heads, len(prefix), size
        known = MetaTensor(torch.empty(shape, dtype=model.dtype, device="meta"))
        return [(known, known)] * config.num_hidden_layers


def meta_module(recipe: Recipe) -> SpeechLLM:
    """The recipe's whole module, with MetaTensors as weights."""
    module = uninitialized_module(recipe, torch.device("meta"))
    to_meta_tensors(module)
    module.cpu()  # where MetaTensors claim to be
    module.llm.prefix_cache = SimulatedPrefixCache()
    return module


def uninitialized_module(recipe: Recipe, device: torch.device) -> SpeechLLM:
    """The recipe's whole module on a device, no weights loaded; the LLM's own tokenizer if it can be reached."""
    with device:
        module = SpeechLLM(recipe)
        module.encoder.build()
        module.llm.build()
    module.encoder.loaded = True
    try:
        module.llm.tokenizer = module.llm.read_tokenizer(HUB.snapshot(module.llm.checkpoint, SETTINGS))
    except MissingError:
        module.llm.chat = cast(ChatFormat, PlaceholderChat())
        return module
    module.llm.chat = module.llm.chat_format(module.llm.tokenizer, [])
    mark_speech(module.llm.chat, recipe.slots)
    return module


class StepSimulator:
    """Steps of one recipe's stages, on MetaTensors: `module` is from `meta_module`. `ranks` counts processes."""

    def __init__(self, recipe: Recipe, module: SpeechLLM, utterances: Sequence[Utterance], ranks: int) -> None:
        self.recipe, self.module, self.utterances = recipe, module, utterances
        self.cached = bool(recipe.data.cache) and not recipe.trains_encoder
        self._seconds = {u.audio: u.seconds for u in utterances if u.audio}
        alone = SimpleNamespace(reduce=lambda x, reduce_op: x, handles_gradient_accumulation=False)
        trainer = SimpleNamespace(world_size=ranks, global_rank=0, accumulate_grad_batches=1, strategy=alone)
        module._trainer = cast(Any, trainer)
        module.llm.compiles = False  # its operations are counted one by one
        module.log = lambda *_, **__: None  # type: ignore[method-assign]

    def stage(self, name: str, sampler: ExampleSampler, order: Sequence[Rows], largest: int = 1) -> Cost:
        """Make a training step of each batch; so many at the beginning give the peak, moments included."""
        optimizer = self.start(name, len(order))
        batches = [self.batch(name, sampler, rows) for rows in order]
        memory, steps, validation = PeakMemory(), [], OpCounter()
        self.step(batches[0], optimizer)  # makes the moments, which stay
        for number, batch in enumerate(batches):
            steps.append(OpCounter())
            with observed(steps[-1]), observed(memory) if number < largest else nullcontext():
                self.step(batch, optimizer)
        with observed(validation):
            self.validate(batches[len(batches) // 2])
        states = [tensor for state in optimizer.state.values() for tensor in state.values()]
        moments = sum(tensor.nbytes for tensor in states if isinstance(tensor, MetaTensor))
        gradients = sum(weight.nbytes for weight in self.module.trainable_parameters())
        return Cost(steps, validation, memory.most + moments, moments, gradients)

    def encoding(self) -> OpCounter:
        work = OpCounter()
        with observed(work):
            self.encode()
        return work

    def start(self, stage: str, steps: int) -> torch.optim.Optimizer:
        self.module.start_stage(stage, steps)
        self.module.distiller = None  # a pass more where its answers are not on the disk yet
        return self.module.configure_optimizers()["optimizer"]

    def batch(self, stage: str, sampler: ExampleSampler, rows: Rows) -> Batch:
        """The rows' examples, with clips of their lengths; targets that the LLM would generate are of usual length."""
        examples = [replace(e, target=REPLY) if e.target is None else e for e in self.examples(stage, sampler, rows)]
        batch = collate(examples, self._empty_clip)
        return replace(batch, audio=Frames(self.clips(*batch.audio.x.shape), batch.audio.lengths))

    def examples(self, stage: str, sampler: ExampleSampler, rows: Rows) -> list[Example]:
        """The rows' examples; those whose target the LLM generates have none yet."""
        drawn = [sampler(self.utterances[row], rows.epoch, k)
                for row in rows.numbers for k in range(self.recipe.stages[stage].draws)]  # fmt: skip
        return [example for example in drawn if example is not None]

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
        with self._autocast():
            loss = self.module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.trainable_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def validate(self, batch: Batch) -> None:
        self.module.eval()
        with self._autocast():
            self.module.loss(batch)
        self.module.train()

    @torch.no_grad()
    def encode(self) -> None:
        """Encode `BATCH` clips of mean length."""
        samples = int(fmean(u.seconds for u in self.utterances) * self.module.encoder.sample_rate)
        self.module.encoder.layer_frames(self.clips(BATCH, samples), torch.full((BATCH,), samples), self.module.layers)

    def cached_bytes(self) -> int:
        """Of a clip of mean length in the feature cache, by its dtype; 0 where there is none."""
        if not self.cached:
            return 0
        frames = math.ceil(fmean(u.seconds for u in self.utterances) * self.module.encoder.frame_rate)
        return stored_bytes(self.recipe.data.cache_dtype, 1, frames, len(self.module.layers) * self.module.encoder.dim)

    def clips(self, *shape: int) -> Tensor:
        """Features; waveforms, (clips, samples), are real tensors: some encoders take them through NumPy first."""
        return torch.zeros(*shape) if len(shape) == 2 else MetaTensor(torch.empty(*shape, device="meta"))

    def _empty_clip(self, clip: Path) -> Tensor:
        """(frames, layers * dim) where these are cached, else (samples,); a clip of an earlier turn is like another."""
        encoder, seconds = self.module.encoder, self._seconds.get(clip) or next(iter(self._seconds.values()))
        if self.cached:
            width = len(self.module.layers) * encoder.dim
            return torch.empty(math.ceil(seconds * encoder.frame_rate), width, device="meta")
        return torch.empty(int(seconds * encoder.sample_rate), device="meta")

    def _autocast(self) -> AbstractContextManager[Any]:
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = mixed.get(str(self.recipe.trainer.get("precision")))
        return torch.autocast(self.module.device.type, dtype=dtype) if dtype else nullcontext()


class StepTimer(StepSimulator):
    """Real steps on this machine, timed: `module` is from `uninitialized_module`, on the device."""

    def times(self, stage: str, sampler: ExampleSampler, order: Sequence[Rows]) -> tuple[float, float]:
        """Seconds of a training step, sampling and collating included, and of a validation step."""
        optimizer = self.start(stage, len(order))
        training = fmean(
            self._seconds_of(lambda: self.step(self.batch(stage, sampler, rows), optimizer))  # noqa: B023
            for rows in order
        )
        batch = self.batch(stage, sampler, order[len(order) // 2])
        return training, self._seconds_of(lambda: self.validate(batch))

    def generate_targets(self, stage: str, sampler: ExampleSampler, order: Sequence[Rows]) -> None:
        """Let the LLM answer as many prompts at once as before a stage, to their full lengths, for its peak memory."""
        llm, slots = self.module.llm, {name: slot.text for name, slot in self.recipe.slots.items()}
        if isinstance(llm.chat, ChatFormat):  # else there is no tokenizer
            waiting = [e for rows in order for e in self.examples(stage, sampler, rows) if e.target is None][:PROMPTS]
            prompts = [llm.embed(llm.chat.prompt(teacher_dialogue(example, slots)), {}) for example in waiting]
            llm.generate(prompts, self.recipe.target_max_new_tokens)

    def encoding_time(self) -> float:
        return self._seconds_of(self.encode)

    def clips(self, *shape: int) -> Tensor:
        return 0.1 * torch.randn(*shape, device=self.module.device)

    def _seconds_of(self, call: Callable[[], None]) -> float:
        """Of the second call: the first fills caches and chooses kernels."""
        for _ in range(2):
            start = time.perf_counter()
            call()
            if self.module.device.type == "cuda":
                torch.cuda.synchronize()
        return time.perf_counter() - start
