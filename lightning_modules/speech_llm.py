"""SpeechLLM, the LightningModule of every recipe: encoder -> adapters -> LLM, loss, optimizer, trained weights."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from sottovoce.adapters import Adapter
from sottovoce.config.recipe import ENCODER, LLM, Recipe
from sottovoce.config.sections import StageConfig
from sottovoce.data.examples import Batch
from sottovoce.encoders import ENCODERS
from sottovoce.errors import ConfigError
from sottovoce.frames import Frames
from sottovoce.lightning_modules.auxiliary_losses import ctc_loss, head_loss, told_loss
from sottovoce.lightning_modules.callbacks import propagate_nonfinite
from sottovoce.lightning_modules.checkpointing import frozen_may_be_absent, load_trained, part_of, with_prefixes
from sottovoce.lightning_modules.trainer import adamw
from sottovoce.llms.auxiliary_head import AuxiliaryHead
from sottovoce.llms.causal_lm import CausalLLM, PooledLayer, TokenLoss
from sottovoce.llms.chat_template import ChatTurn, Segment
from sottovoce.llms.ctc_head import CTCHead
from sottovoce.llms.row_batches import known_prefixes
from sottovoce.training import spoken_prompt
from sottovoce.training.batch_plan import step_size
from sottovoce.training.distillation import Distiller
from sottovoce.training.slot_layers import MIX, layers_of_slots, slot_adapters
from sottovoce.training.speech_slots import adapted, compressed, read_tokens
from sottovoce.training.spoken_prompt import constant, dialogue_of, speech_positions

HEADS = ("auxiliary_head", "ctc_head")  # guide training, and are no part of the result
PARTS = ("adapters", "encoder", "llm", *HEADS)  # what may be trained: that is saved, and insisted on when loading


class SpeechLLM(L.LightningModule):
    """Encoder -> slots filled by adapters -> LLM.

    Adapters are small and are built in `__init__`; the encoder's weights and the LLM are large and come in
    `configure_model`, where a strategy may shard them. Encoder and LLM are frozen in stages that do not name them.
    """

    node: StageConfig  # of the stage at hand
    steps: int  # optimizer steps of that stage

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.encoder = ENCODERS.build(recipe.encoder)
        llm = recipe.llm
        self.llm = CausalLLM(
            llm.checkpoint, llm.dtype, llm.trust_remote_code, llm.tuning, llm.chat_template_kwargs,
            llm.attn_implementation, llm.chat_template, llm.quantization,
        )  # fmt: skip
        self.llm.compiles = recipe.compile
        self.slots: dict[str, str] = {name: slot.text for name, slot in recipe.slots.items()}
        self.slot_layers = layers_of_slots(recipe, self.encoder)  # slot -> the encoder's layers that it hears
        self.layers = tuple(sorted({layer for layers in self.slot_layers.values() for layer in layers}))
        self.adapters = nn.ModuleDict(slot_adapters(recipe, self.encoder.dim, self.llm.dim, self.slot_layers))
        head = self.recipe.auxiliary_head
        if head and not 0 <= head.layer < self.llm.depth:
            why = f"{head.layer} is not there; the LLM has layers 0-{self.llm.depth - 1}"
            raise ConfigError.at("auxiliary_head.layer", "bad-value", why)
        self.auxiliary_head = AuxiliaryHead(self.llm.dim, head.categories) if head else None
        self.compressed = [name for name, slot in recipe.slots.items() if slot.ctc_compression]
        reads = self.compressed or any(node.ctc for node in recipe.stages.values())
        self.ctc_head = CTCHead(self.llm.dim) if reads else None
        self.encoder_learns = self.llm_learns = False
        self.owns_encoder = self.recipe.trains_encoder  # or has taken one that another run trained, which is kept, too
        self.row_losses: Tensor | None = None  # of the step at hand, (rows,)
        self.distiller: Distiller | None = None  # of the stage at hand
        self.row_tokens: Sequence[tuple[int, int]] = ()  # see `TokenLoss`
        self._begins: dict[str, Tensor] | None = None
        self._so_far = torch.zeros(2)  # loss and response tokens of the step at hand, over all ranks
        self.register_load_state_dict_post_hook(frozen_may_be_absent)  # type: ignore[no-untyped-call]

    def start_stage(self, stage: str, steps: int) -> None:
        """Get ready to train a stage of so many optimizer steps: its adapters learn, the others are frozen."""
        self.node, self.steps = self.recipe.stages[stage], steps
        cache = Path(self.recipe.data.cache or self.recipe.folder / "cache")
        taught = self.node.distill if self.node.distill and self.node.distill.weight else None
        self.distiller = Distiller(self.llm, cache, self.slots, taught) if taught else None
        self.llm_learns, self.llm.may_pack = LLM in (self.node.train or ()), True
        for name, adapter in self.adapters.items():
            adapter.requires_grad_(name in (self.node.train or self.slots))
        self.encoder_learns = ENCODER in (self.node.train or ())
        self._set_requires_grad()
        self.train()  # Lightning leaves modes alone, and an encoder may be born in eval mode

    def configure_model(self) -> None:
        """Fetch the large parts. Lightning calls this more than once; all of it is idempotent."""
        self.encoder.load()
        self._load_llm()
        self._set_requires_grad()
        if self._begins is not None:
            self.load_trained(self._begins, "the run's own weights")
            self._begins = None
            self.train(self.training)  # what has come now, too

    def init_from(self, weights: dict[str, Tensor]) -> None:
        """Take these trained weights when the large parts are there, which a strategy may shard as they come."""
        self._begins = weights

    def _load_llm(self) -> None:
        """The LLM, and what adapters bring along from its checkpoint."""
        for adapter in self.adapters.values():
            cast(Adapter, adapter).load()
        self.llm.load()
        spoken_prompt.mark_speech(self.llm.chat, self.recipe.slots)

    def _set_requires_grad(self) -> None:
        """Gradients for what this stage trains of the large parts, and for the heads if the LLM learns."""
        self.encoder.requires_grad_(self.encoder_learns)
        self.llm.set_trainable(self.llm_learns)
        if self.auxiliary_head:
            self.auxiliary_head.requires_grad_(self.llm_learns)
        if self.ctc_head:
            self.ctc_head.requires_grad_(bool(self.ctc_weights))

    @property
    def ctc_weights(self) -> dict[str, float]:
        """Slot -> weight of its CTC loss in the stage at hand; empty outside training."""
        return (getattr(self, "node", None) and self.node.ctc) or {}

    @property
    def dropped(self) -> tuple[str, ...]:
        """Parts that serve training alone, and are no part of the trained model."""
        return tuple(name for name in HEADS if name != "ctc_head" or not self.compressed)

    @property
    def trained_prefixes(self) -> tuple[str, ...]:
        """What some stage trains: the beginnings of names in the state dict. Of the LLM, once it is loaded."""
        heads = [f"{name}." for name in HEADS if getattr(self, name) is not None]
        tuned = [f"llm.{name}" for name in self.llm.trainable_names]
        return ("adapters.", *["encoder."] * self.owns_encoder, *heads, *tuned)

    def train(self, mode: bool = True) -> "SpeechLLM":
        """What learns follows `mode`; frozen parts stay in eval."""
        super().train(mode)
        self.encoder.train(mode and self.encoder_learns)
        self.llm.train(mode and self.llm_learns)
        return self

    @property
    def lockstep(self) -> bool:
        """Whether all processes must make the same calls in the same order: under DeepSpeed.

        ZeRO's stage 3 gathers weights as they are used; 1 and 2 add up gradients in the order of the backward pass.
        """
        return self._trainer is not None and isinstance(self._trainer.strategy, DeepSpeedStrategy)

    def speech_embeddings(
        self, batch: Batch, prompts: Iterable[list[Segment]], slots: Iterable[str] | None = None
    ) -> tuple[dict[Hashable, Tensor], Tensor | float]:
        """Speech as the LLM reads it, (tokens, llm_dim) by placeholder, of some slots or all; and a zero, as below."""
        if batch.speech is not None:
            return dict(batch.speech), 0.0
        speech, anchor = adapted(self, batch, prompts, slots)
        return compressed(self, speech), anchor

    def encoded(self, audio: Frames) -> Frames:
        """Encoder output (clips, frames, layers * dim) of waveforms (clips, samples), or of the cache as it is."""
        if audio.x.dim() == 3:
            return audio
        with torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()):
            return self.encoder.layer_frames(audio.x, audio.lengths, self.layers)

    def heard(self, slot: str, frames: Frames) -> Frames:
        """What a slot hears, (.., dim), of encoder output (clips, frames, layers * dim)."""
        mix = getattr(self.adapters[slot], MIX, None)
        return frames if mix is None else Frames(mix(frames.x), frames.lengths)

    def adapt(self, slot: str, frames: Frames) -> Frames:
        """A slot's embeddings (clips, tokens, llm_dim) of encoder output (clips, frames, layers * dim)."""
        with torch.no_grad():
            return read_tokens(self, slot, self.adapt_frames(slot, frames))

    def adapt_frames(self, slot: str, frames: Frames, learns: bool = False) -> Frames:
        """What a slot's adapter makes of encoder output; it learns, or is frozen."""
        adapter, learns = self.adapters[slot], learns and self.training
        training = adapter.training
        adapter.train(training and learns)  # or frozen for these rows: no gradient, no dropout
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            out: Frames = adapter(self.heard(slot, frames))
        adapter.train(training)
        return out

    @torch.no_grad()
    def generate(self, batch: Batch, dialogues: list[list[ChatTurn]], max_new_tokens: int) -> list[str]:
        """The model's answer to each dialogue; the batch has their clips."""
        self.eval()
        prompts = [self.llm.chat.prompt(dialogue) for dialogue in dialogues]
        return self.llm.generate(self.embed_prompts(batch, prompts), max_new_tokens, known_prefixes(prompts))

    def embed(self, batch: Batch, dialogues: list[list[ChatTurn]]) -> list[Tensor]:
        """Each dialogue's prompt as the LLM reads it, (tokens, llm_dim): text and the batch's speech."""
        return self.embed_prompts(batch, [self.llm.chat.prompt(dialogue) for dialogue in dialogues])

    def embed_prompts(self, batch: Batch, prompts: list[list[Segment]]) -> list[Tensor]:
        """The same of dialogues as token ids and placeholders."""
        return self.llm.embed_all(prompts, self.speech_embeddings(batch, prompts)[0])

    def loss(self, batch: Batch) -> TokenLoss:
        """Negative log-likelihood of the response tokens, given prompt and speech; CTC and a teacher's KL, if any."""
        chat = self.llm.chat
        dialogues = [dialogue_of(example, self.slots) for example in batch.examples]
        prompts = [chat.prompt(dialogue) for dialogue in dialogues]  # token ids and speech placeholders
        responses = [chat.response(d, e.target or "") for d, e in zip(dialogues, batch.examples, strict=True)]
        teaching = self.distiller.teaching(batch.examples, responses) if self.distiller else None
        silent = self.ctc_weights and not teaching and not self.node.response_weight  # the LLM is not run
        speech, anchor = adapted(self, batch, prompts, self.ctc_weights if silent else None)
        ctc = ctc_loss(self, batch, speech)
        if ctc and silent:
            rows = ctc.total.new_zeros(len(prompts))
            return TokenLoss(rows.sum() + anchor, sum(map(len, responses)), rows, ctc=ctc)
        speech = compressed(self, speech)
        inputs = [prompt + anchor for prompt in self.llm.embed_all(prompts, speech)]  # rows of (prompt_tokens, llm_dim)
        prefixes = [constant(prompt) for prompt in prompts]  # text before the first speech: its keys can be cached
        pool = self._pool(batch, prompts, speech)
        return self.llm.loss(inputs, responses, prefixes, pool, teaching)._replace(ctc=ctc)

    def _pool(self, batch: Batch, prompts: list[list[Segment]], speech: dict[Hashable, Tensor]) -> PooledLayer | None:
        """The positions whose hidden states the auxiliary heads classify; None where these do not train."""
        if self.recipe.auxiliary_head is None or not self.llm_learns:
            return None
        rows = [speech_positions(prompt, speech, e) for prompt, e in zip(prompts, batch.examples, strict=True)]
        return PooledLayer(self.recipe.auxiliary_head.layer, rows)

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The mean over response tokens of all ranks (not a mean of the ranks' means)."""
        torch.manual_seed(hash((self.recipe.seed, number, self.global_rank)))  # dropout, also when resumed
        out = self.loss(batch)
        self.row_losses, self.row_tokens = out.per_row.detach(), out.row_tokens
        # sums over all ranks, of which each then divides by the tokens of all, in all batches of the step
        told, count = told_loss(self, out)
        here = torch.stack([told.detach(), told.new_tensor(count), told.new_tensor(out.tokens)]) * batch.counts
        if batch.step is not None:
            here[2] = batch.step.tokens
        total, tokens, in_step = self.trainer.strategy.reduce(here, reduce_op="sum")
        first = number % self.trainer.accumulate_grad_batches == 0
        self._so_far = torch.stack([total, tokens]) + (0.0 if first else self._so_far)  # of the step
        mean = self._so_far[0] / self._so_far[1].clamp(min=1)  # there are none where no process has a row that counts
        self.log("train/loss", mean, prog_bar=True, batch_size=len(batch.examples))
        nll = self.node.response_weight * out.total
        if out.divergence is not None and self.node.distill:
            nll = nll + self.node.distill.weight * out.divergence
            self.log("train/distill", out.divergence.detach() / out.tokens, batch_size=len(batch.examples))
        if out.ctc:  # divided by the tokens of the responses, too, so that shares of a step add up to the whole
            nll = nll + out.ctc.total + out.ctc.size
            self.log("train/ctc", out.ctc.total.detach() / max(out.ctc.tokens, 1), batch_size=len(batch.examples))
            self.log("train/ctc_aligned", out.ctc.tokens / max(out.ctc.given, 1), batch_size=len(batch.examples))
        loss: Tensor = nll * batch.counts * self.averaged / in_step.clamp(min=1)
        # a gradient for every weight on every rank, if only 0; in lockstep the loss has an anchor of its own
        anchor = 0.0 if self.lockstep else 0.0 * sum(weight.sum() for weight in self.trainable_parameters())
        heads = 0.0 if out.pooled is None else head_loss(self, batch, out)
        return propagate_nonfinite(loss + heads + anchor)

    @property
    def averaged(self) -> int:
        """By what a gradient is divided, the mean over ranks and batches; DeepSpeed and Lightning both take it."""
        times = 1 + self.trainer.strategy.handles_gradient_accumulation
        return int(self.trainer.world_size * self.trainer.accumulate_grad_batches**times)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The weights that this stage trains, heads included."""
        parts = (getattr(self, part) for part in PARTS)
        return [weight for part in parts if part is not None for weight in part.parameters() if weight.requires_grad]

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        """The same by slot, `encoder`, `llm` and head, in the same order."""
        slots = {name: self.adapters[name] for name in self.adapters}
        parts = {**slots, **{name: getattr(self, name) for name in PARTS[1:]}}
        there = {name: part for name, part in parts.items() if part is not None}
        learns = {name: [w for w in part.parameters() if w.requires_grad] for name, part in there.items()}
        return {name: weights for name, weights in learns.items() if weights}

    def on_validation_epoch_start(self) -> None:
        self._validation_sums = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Batch, number: int) -> None:
        out = self.loss(batch)
        self.row_losses, self.row_tokens = out.per_row, out.row_tokens
        total, count = told_loss(self, out)
        self._validation_sums += torch.tensor([total.item(), count], dtype=torch.float64) * batch.counts

    def on_validation_epoch_end(self) -> None:
        total, tokens = self.trainer.strategy.reduce(self._validation_sums.to(self.device), reduce_op="sum").tolist()
        self.log("val/loss", total / max(tokens, 1), prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what this stage trains, with its schedule (section IV-C)."""
        return adamw(self.recipe.trainer, self.trainable_parameters(), self.node, self.steps, self._parts())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds what was trained and nothing that was frozen, recipe and batch size."""
        checkpoint["recipe"], together = self.recipe.plain(), self.trainer.accumulate_grad_batches
        _, checkpoint["batch_size"] = step_size(self.node, self.trainer.world_size * together)
        checkpoint["accumulate_grad_batches"] = together
        checkpoint["state_dict"] = with_prefixes(self.trained_prefixes, checkpoint["state_dict"])

    def trained(self) -> dict[str, Tensor]:
        """The weights that some stage trains, named as in a checkpoint; without the heads, which are only a help."""
        prefixes = [name for name in self.trained_prefixes if name.removesuffix(".") not in self.dropped]
        return {} if self.recipe.untuned else with_prefixes(prefixes, self.state_dict())

    def load_trained(self, weights: dict[str, Tensor], source: str, *, begins: bool = False) -> None:
        """Take trained weights; see `checkpointing.load_trained`."""
        self._load_llm()  # what of it trains is known then, and nothing that comes later overwrites these weights
        needed = {name for name in PARTS if any(key.startswith(f"{name}.") for key in self.trained_prefixes)}
        needed -= {*self.dropped, *((ENCODER, LLM) if begins else ())}
        if begins and {slot for node in self.recipe.stages.values() for slot in node.ctc or {}} >= {*self.compressed}:
            needed -= {"ctc_head"}  # which a stage teaches anew
        if not weights and (begins or self.recipe.untuned):
            needed -= {"adapters"} if all(cast(Adapter, each).pretrained for each in self.adapters.values()) else set()
        load_trained(self, weights, PARTS, needed, source)
        self.owns_encoder |= bool(part_of(weights, ENCODER))
