"""One LightningModule for every recipe: it wires parts together and leaves the work to them."""

from collections.abc import Hashable, Iterable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from undertone.adapters import ADAPTERS
from undertone.data.loader import Batch
from undertone.encoders import ENCODERS
from undertone.errors import BundleError
from undertone.lightning_modules import recipe as recipes
from undertone.lightning_modules.prompting import Spot, chat_of
from undertone.lightning_modules.recipe import ENCODER
from undertone.lightning_modules.schedule import Schedule, learning_rate
from undertone.llms.causal import CausalLLM, TokenLoss
from undertone.llms.chat import ChatTurn, Placeholder, Segment
from undertone.types import Frames

PARTS = ("adapters", "encoder")  # what may be trained; only trained weights are saved, and insisted on when loading


class SpeechLLM(L.LightningModule):
    """Encoder -> slots filled by adapters -> frozen LLM.

    Adapters are small and are born in `__init__`; the encoder's weights and the LLM are large and arrive in
    `configure_model`, where a strategy may shard them. The encoder is frozen in stages that do not name it.

    Args:
        recipe: the whole recipe as nested dicts, so that a checkpoint holds data and nothing else.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.recipe = recipes.parse(recipe)
        self.encoder = ENCODERS.build(self.recipe.encoder)
        node = self.recipe.llm
        self.llm = CausalLLM(node.checkpoint, node.dtype, node.trust_remote_code)
        self.slots: dict[str, str] = {name: slot.text for name, slot in self.recipe.slots.items()}
        self.adapters = nn.ModuleDict(
            {
                name: ADAPTERS.build(slot.adapter, self.encoder.dim, self.llm.dim)
                for name, slot in self.recipe.slots.items()
            }
        )
        self.owned = tuple(f"{part}." for part in PARTS if part != ENCODER or self.recipe.trains_encoder)
        self.encoder_learns = False
        self.register_load_state_dict_post_hook(_frozen_weights_may_be_absent)  # type: ignore[no-untyped-call]

    def begin(self, stage: str, steps: int) -> None:
        """Get ready to train a stage of so many optimizer steps: its adapters learn, the others are frozen."""
        self.node, self.steps = self.recipe.stages[stage], steps
        for name, adapter in self.adapters.items():
            adapter.requires_grad_(name in (self.node.trains or self.slots))
        self.encoder_learns = ENCODER in (self.node.trains or ())
        self.encoder.requires_grad_(self.encoder_learns)
        self.train()  # Lightning leaves modes alone, and an encoder may be born in eval mode

    def configure_model(self) -> None:
        """Fetch the large parts. Lightning calls this more than once; both loads are idempotent."""
        self.encoder.load()
        self.encoder.requires_grad_(self.encoder_learns)
        self.llm.load()
        self.llm.requires_grad_(False)

    def train(self, mode: bool = True) -> "SpeechLLM":
        """What learns follows `mode`; frozen parts stay in eval."""
        super().train(mode)
        self.encoder.train(mode and self.encoder_learns)
        self.llm.eval()
        return self

    def prompts(self, batch: Batch, chats: list[list[Segment]]) -> list[Tensor]:
        """Every tokenised chat as the LLM reads it: a list of (tokens, dim), text and the batch's speech spliced."""
        spots = {part.key for chat in chats for part in chat if isinstance(part, Placeholder)}
        fills = self._fill(batch, spots)
        return [self.llm.embed(chat, fills) for chat in chats]

    def _fill(self, batch: Batch, spots: Iterable[Hashable]) -> dict[Hashable, Tensor]:
        """What the adapters make of the clips: one pass a slot for rows that learn, one for rows it is frozen for."""
        if not batch.clips:
            return {}
        frames = self._encoded(batch.audio)
        fills: dict[Hashable, Tensor] = {}
        for slot in self.slots:
            for learns in (True, False):
                wanted = [s for s in spots if isinstance(s, Spot) and (s.slot, s.learns) == (slot, learns)]
                wanted.sort(key=lambda spot: batch.clips[spot.clip])
                if wanted:
                    rows = torch.tensor([batch.clips[spot.clip] for spot in wanted], device=frames.x.device)
                    out = self._adapt(slot, Frames(frames.x[rows], frames.lengths[rows]), learns)
                    fills |= zip(wanted, out.rows(), strict=True)
        return fills

    def _encoded(self, audio: Frames) -> Frames:
        """Waveforms (clips, samples) go through the encoder; what comes from the cache has been there."""
        if audio.x.dim() == 3:
            return audio
        with torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()):
            return cast(Frames, self.encoder(audio.x, audio.lengths))

    def _adapt(self, slot: str, frames: Frames, learns: bool) -> Frames:
        adapter = self.adapters[slot]
        if learns and self.training:
            return cast(Frames, adapter(frames))
        training = adapter.training
        adapter.eval()  # frozen for these rows: no gradient, no dropout
        with torch.no_grad():
            out: Frames = adapter(frames)
        adapter.train(training)
        return out

    def loss(self, batch: Batch) -> TokenLoss:
        """How surprising the targets are."""
        examples, write = batch.examples, self.llm.chat
        turns = [chat_of(example, self.slots) for example in examples]
        chats = [write.prompt(chat) for chat in turns]
        responses = [write.response(chat, e.target or "") for chat, e in zip(turns, examples, strict=True)]
        return self.llm.loss(self.prompts(batch, chats), responses, [_constant(chat) for chat in chats])

    def training_step(self, batch: Batch, number: int) -> Tensor:
        """The mean over response tokens of all ranks (not a mean of the ranks' means)."""
        # Dropout: the same when resumed.
        torch.manual_seed(hash((self.recipe.seed, self.global_step, self.global_rank)))
        out = self.loss(batch)
        tokens = torch.tensor(float(out.tokens), device=self.device)
        everywhere = self.trainer.strategy.reduce(tokens, reduce_op="sum")
        loss: Tensor = out.total * self.trainer.world_size / everywhere  # strategies average gradients over ranks
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.examples))
        # Every rank has a gradient for every weight, if only 0.
        return loss + 0.0 * sum(weight.sum() for weight in self._learning())

    def _learning(self) -> list[nn.Parameter]:
        parts = (self.adapters, self.encoder)
        return [weight for part in parts for weight in part.parameters() if weight.requires_grad]

    def on_validation_epoch_start(self) -> None:
        self._surprise = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Batch, number: int) -> None:
        out = self.loss(batch)
        self._surprise += torch.tensor([out.total.item(), out.tokens], dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        total, tokens = self.trainer.strategy.reduce(self._surprise.to(self.device), reduce_op="sum").tolist()
        self.log("val/loss", total / max(tokens, 1), prog_bar=True, rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what this stage trains, with its schedule (section IV-C)."""
        node = self.node
        optimizer = torch.optim.AdamW(
            self._learning(), node.lr, betas=(node.betas[0], node.betas[1]), weight_decay=node.weight_decay
        )
        shape = Schedule(node.warmup_steps, self.steps, node.decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(shape, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds what was trained, and nothing that was frozen."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in weights.items() if key.startswith(self.owned)}

    def trained(self) -> dict[str, Tensor]:
        """The weights that some stage trains, named as in a checkpoint."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(self.owned)}

    def load_trained(self, weights: dict[str, Tensor], source: str) -> None:
        """Take trained weights, named as in a checkpoint; every one must be there, and no other.

        Raises:
            BundleError: a weight is missing, unknown, or of another shape; `source` is named.
        """
        parts = {name: _part(weights, name) for name in PARTS if f"{name}." in self.owned or _part(weights, name)}
        strays = [name for name in weights if not name.startswith(tuple(f"{part}." for part in PARTS))]
        if strays:
            raise BundleError(f"{source}: {', '.join(strays[:3])} is no weight of anything that trains")
        try:
            self.adapters.load_state_dict(parts["adapters"])
            if ENCODER in parts:
                self.encoder.take(parts[ENCODER])
        except RuntimeError as error:
            raise BundleError(
                f"{source}: its trained weights do not fit this recipe: {' '.join(str(error).split())}"
            ) from None


def answers(module: SpeechLLM, batch: Batch, chats: list[list[ChatTurn]], max_new_tokens: int) -> list[str]:
    """What the model answers to each chat; the batch has the clips that they speak of."""
    module.eval()
    with torch.no_grad():
        prompts = module.prompts(batch, [module.llm.chat.prompt(chat) for chat in chats])
        return module.llm.generate(prompts, max_new_tokens)


def _constant(chat: list[Segment]) -> list[int]:
    """The text before the first speech: what no adapter can change. Its last token stays, to be answered from."""
    return chat[0][:-1] if isinstance(chat[0], list) else []


def _part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def _frozen_weights_may_be_absent(module: nn.Module, keys: Any) -> None:
    """Keep loading strict where it matters: every weight that trains must be there, frozen ones need not."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.startswith(cast(SpeechLLM, module).owned)]
