"""Greedy search of many rows, which leave the batch as they end, after a text that is read once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from sottovoce.errors import TrainingError
from sottovoce.llms.row_batches import cache_argument, pad_left

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM
    from sottovoce.llms.row_generation import RowState

LEAVE = 0.75  # rows leave once no more than this share of the batch goes on: keys and values are copied then


class FiniteLogits(LogitsProcessor):
    """Raises TrainingError where no token is the likeliest: greedy search would answer with the first of all tokens.

    Activations of some LLMs overflow in float16.
    """

    def __init__(self, llm: "CausalLLM") -> None:
        self.what = f"{llm.checkpoint} in {str(llm.dtype).removeprefix('torch.')}"

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (rows, vocabulary), as they are."""
        if not scores.amax(1).isfinite().all():
            why = f"the logits of {self.what} are not finite: set llm.dtype=bfloat16 or float32; if they are not "
            raise TrainingError.at("llm.dtype", "nonfinite", f"{why}then, what was trained is broken")
        return scores


@torch.no_grad()
def greedy_search(
    llm: "CausalLLM", prompts: Sequence[Tensor], prefixes: Sequence[Sequence[int]], state: "RowState"
) -> None:
    """Give each row of `state` its likeliest next token until it has ended, as `transformers.generate` would.

    Args:
        llm: one whose layers all attend to the whole past.
        prompts: each (tokens, dim).
        prefixes: token ids of the text with which each prompt begins, shorter than the prompt; empty: none. Their keys
            and values are computed once, and kept.
        state: the rows, none of which has ended.

    Raises:
        TrainingError: see `FiniteLogits`.
    """
    from transformers import DynamicCache

    model, finite = llm.model, FiniteLogits(llm)
    x, real = pad_left([prompt[len(prefix) :] for prompt, prefix in zip(prompts, prefixes, strict=True)])
    past: Any = DynamicCache(config=model.config)
    if any(prefixes):
        past, before = llm.prefix_cache.batch(model, [list(prefix) for prefix in prefixes])
        real = torch.cat([before, real], 1)
    places = (real.cumsum(1) - 1).clamp(min=0)  # of tokens in their rows
    rows = torch.arange(len(prompts), device=x.device)  # that are in the batch
    inputs: dict[str, Tensor] = {"inputs_embeds": x, "position_ids": places[:, -x.shape[1] :]}
    place = places[:, -1:]
    while True:
        arguments = {"attention_mask": real.long(), "use_cache": True, cache_argument(model): past}
        logits = model(**inputs, **arguments, logits_to_keep=1).logits[:, -1]
        tokens = finite(None, logits.float()).argmax(-1)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            state.add(row, token)
        going = torch.tensor([not state.ended[row] for row in rows.tolist()], device=x.device)
        if not going.any():
            return
        if going.sum() <= LEAVE * len(rows):
            kept = going.nonzero()[:, 0]
            past.batch_select_indices(kept)
            rows, real, place, tokens = rows[kept], real[kept], place[kept], tokens[kept]
        real, place = torch.cat([real, real.new_ones(len(rows), 1)], 1), place + 1
        inputs = {"input_ids": tokens[:, None], "position_ids": place}
