"""Speech in the slots of prompts: what adapters make of clips, and CTC compression of that, see `CTCHead.read`."""

from collections.abc import Hashable, Iterable
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from sottovoce.data.examples import Batch
from sottovoce.frames import Frames
from sottovoce.llms import CausalLLM
from sottovoce.llms.chat_template import Placeholder, Segment
from sottovoce.llms.ctc_head import CTCHead
from sottovoce.training.spoken_prompt import SpeechPlaceholder


class Model(Protocol):
    """What is needed of a `SpeechLLM`, see there."""

    slots: dict[str, str]
    compressed: list[str]
    ctc_head: CTCHead | None
    llm: CausalLLM

    @property
    def lockstep(self) -> bool: ...

    def encoded(self, audio: Frames) -> Frames: ...

    def adapt_frames(self, slot: str, frames: Frames, learns: bool = False) -> Frames: ...


def adapted(
    module: Model, batch: Batch, prompts: Iterable[list[Segment]], slots: Iterable[str] | None = None
) -> tuple[dict[Hashable, Tensor], Tensor | float]:
    """Adapter outputs (tokens, llm_dim) by placeholder, of some slots or all; a zero that ties idle adapters.

    An adapter runs once over the clips that it learns from and once, without gradient, over those it is frozen
    for. In lockstep every process makes the same calls, so an adapter that nothing asks for runs on a stand-in row.
    """
    anchor: Tensor | float = 0.0
    if not batch.clips and not (module.lockstep and len(batch.audio.lengths)):
        return {}, anchor
    frames = module.encoded(batch.audio)  # (clips, frames, layers * encoder_dim)
    keys = {part.key for prompt in prompts for part in prompt if isinstance(part, Placeholder)}
    placeholders = sorted((k for k in keys if isinstance(k, SpeechPlaceholder)), key=lambda k: batch.clips[k.clip])
    embeddings: dict[Hashable, Tensor] = {}
    for slot, learns in product(module.slots if slots is None else slots, (True, False)):
        wanted = [key for key in placeholders if (key.slot, key.learns) == (slot, learns)]
        if not wanted and not module.lockstep:
            continue
        rows = torch.tensor([batch.clips[key.clip] for key in wanted] or [0], device=frames.x.device)
        heard = Frames(frames.x[rows], frames.lengths[rows])
        speech = module.adapt_frames(slot, heard, learns)  # (rows, tokens, llm_dim)
        if wanted:
            embeddings.update(zip(wanted, speech.rows(), strict=True))
        if module.lockstep and learns:
            anchor = anchor + 0.0 * speech.x.sum()
    return embeddings, anchor


def compressed(module: Model, speech: dict[Hashable, Tensor]) -> dict[Hashable, Tensor]:
    """Adapter outputs (frames, llm_dim) by placeholder as the LLM reads them, those of compressed slots shorter."""
    read = dict(speech)
    for slot, learns in product(module.compressed, (True, False)):
        keys = [k for k in speech if isinstance(k, SpeechPlaceholder) and (k.slot, k.learns) == (slot, learns)]
        if keys:
            rows = read_tokens(module, slot, Frames.pad([speech[key] for key in keys])).rows()
            read.update(zip(keys, rows, strict=True))
    return read


def read_tokens(module: Model, slot: str, speech: Frames) -> Frames:
    """Adapter outputs (clips, frames, llm_dim) of a slot as the LLM reads them."""
    if module.ctc_head is None or slot not in module.compressed:
        return speech
    with torch.autocast(speech.x.device.type, enabled=False):  # so that a frame is the same token in any precision
        return module.ctc_head.read(speech, module.llm.token_table(), module.llm.chat.control_ids)
