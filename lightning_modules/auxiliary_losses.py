"""Losses beside the response's: CTC of transcripts in a slot's embeddings, and the auxiliary heads of PE-FT."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sottovoce.data.examples import Batch
from sottovoce.llms.causal_lm import TokenLoss
from sottovoce.llms.ctc_head import CTCLoss
from sottovoce.training import spoken_prompt

if TYPE_CHECKING:
    from sottovoce.lightning_modules.speech_llm import SpeechLLM


def ctc_loss(module: SpeechLLM, batch: Batch, speech: dict[Hashable, Tensor]) -> CTCLoss | None:
    """Weighted CTC of transcripts in the embeddings that learn, a row for each clip; None without `ctc`."""
    if module.ctc_head is None or not module.ctc_weights:
        return None
    table, losses = module.llm.token_table(), []
    for slot, weight in module.ctc_weights.items():
        texts = spoken_prompt.transcripts(batch.examples, slot, speech)
        ids = [module.llm.chat.ids_after_words(text) for text in texts.values()]
        found = module.ctc_head.loss([speech[key] for key in texts], ids, table)
        losses.append(found._replace(total=weight * found.total, size=weight * found.size))
    totals, tokens, given, sizes = zip(*losses, strict=True)
    return CTCLoss(torch.stack(totals).sum(), sum(tokens), sum(given), torch.stack(sizes).sum())


def head_loss(module: SpeechLLM, batch: Batch, out: TokenLoss) -> Tensor | float:
    """Weighted loss of the heads (PE-FT, section 5): category + attribute, over all ranks' rows with one."""
    config = module.recipe.auxiliary_head
    if module.auxiliary_head is None or config is None or out.pooled is None:
        return 0.0
    rows = [i for i, example in enumerate(batch.examples) if batch.counts and example.utterance.category]
    truth = [(str(u.category), u.labels[str(u.category)]) for u in (batch.examples[i].utterance for i in rows)]
    here = float(len(rows) if batch.step is None else batch.step.categories)
    count = module.trainer.strategy.reduce(torch.tensor(here, device=module.device), reduce_op="sum")
    if not rows and not module.lockstep:
        return 0.0
    category, values = next(iter(config.categories.items()))  # a stand-in, where no row of this process has one
    head = module.auxiliary_head.loss(out.pooled[rows or [0]], truth or [(category, values[0])])
    share = module.averaged / count.clamp(min=1) if rows else 0.0
    both: Tensor = (head.category + head.attribute) * share
    if rows:
        module.log("train/auxiliary_head_accuracy", head.right / head.rows, batch_size=head.rows)
        module.log("train/auxiliary_head", both, batch_size=head.rows)
    return config.weight * both


def told_loss(module: SpeechLLM, out: TokenLoss) -> tuple[Tensor, int]:
    """What is told as the loss, a sum, (), and its tokens: of responses, or of what is learned in place of them."""
    if not module.node.response_weight and out.divergence is not None:
        return out.divergence, out.tokens
    return out.ctc[:2] if not module.node.response_weight and out.ctc else out[:2]
