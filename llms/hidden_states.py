"""What stands inside an LLM while it reads: the state after every layer, and what it would say there already."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sottovoce.errors import SottovoceError
from sottovoce.llms.causal_lm import CausalLLM, _pad_left

# What families call the norm between the last layer and the output embeddings; it stands beside the layers.
NORMS = ("norm", "final_layernorm", "final_layer_norm", "final_norm", "ln_f")


class Inside(NamedTuple):
    """What was seen, on the CPU. There is one state more than layers: the input of the first, then every output.

    Args:
        pooled: (rows, states, dim) in float32, the mean over the positions that were asked for.
        ranks: (rows, states) in int32, the logit lens: how many tokens a state puts before the model's own next token.
        tokens: (rows,) in int64, that token.
    """

    pooled: Tensor
    ranks: Tensor
    tokens: Tensor


class _Seen(NamedTuple):
    """A state, reduced as soon as it is there: (rows, dim) each, `last` in the LLM's dtype."""

    pooled: Tensor
    last: Tensor


@torch.no_grad()
def look_inside(llm: CausalLLM, prompts: list[Tensor], positions: Sequence[Sequence[int]]) -> Inside:
    """Read prompts once, and keep of every state what the analyses need. A row does not depend on its batch mates.

    States are what goes from layer to layer: the last one is before the final norm, unlike transformers'
    `hidden_states[-1]`. The logit lens is the final norm and the output embeddings, applied to a state of the last
    position (the one that predicts the first token of the answer).

    Args:
        llm: loaded.
        prompts: each (tokens, dim), from `CausalLLM.embed`.
        positions: of each prompt, those over which states are averaged; at least one.

    Raises:
        SottovoceError: a prompt has no position to look at, or is longer than the LLM reads; or its architecture ends
            in another way than norm and output embeddings.
    """
    if empty := [row for row, places in enumerate(positions) if not len(places)]:
        raise SottovoceError(f"prompt {empty[0]} has no position to look at: its slots are empty", code="empty")
    llm._check(prompts, [0] * len(prompts))
    x, real = _pad_left(prompts)
    mask = torch.zeros(real.shape, device=x.device)
    for row, (prompt, places) in enumerate(zip(prompts, positions, strict=True)):
        mask[row, [real.shape[1] - len(prompt) + place for place in places]] = 1.0
    norm, head = _end(llm.model, llm.layers)
    with _watching(llm.layers, mask) as seen, _input_of(head) as heard:
        llm.model(
            inputs_embeds=x,
            attention_mask=real.long(),
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=1,
        )
    if not torch.allclose(norm(seen[-1].last), heard[0][:, -1], rtol=1e-2, atol=1e-4):
        raise SottovoceError(
            f"the logit lens does not fit {type(llm.model).__name__}: something else than its norm stands between its "
            "last layer and its output embeddings"
        )
    ranks, tokens = _lens([state.last for state in seen], norm, head)
    return Inside(torch.stack([state.pooled for state in seen], 1).cpu(), ranks.cpu(), tokens.cpu())


def _lens(states: list[Tensor], norm: nn.Module, head: nn.Module) -> tuple[Tensor, Tensor]:
    """How many tokens each state puts before the last state's first, (rows, states), and that token, (rows,)."""
    tokens = head(norm(states[-1])).argmax(-1)
    ranks = []
    for state in states:  # one after another: a vocabulary is large
        logits = head(norm(state))
        ranks.append((logits > logits.gather(1, tokens[:, None])).sum(1).int())
    return torch.stack(ranks, 1), tokens


@contextmanager
def _watching(layers: nn.ModuleList, mask: Tensor) -> Iterator[list[_Seen]]:
    """While a batch goes through the model: its states, averaged where `mask`, (rows, tokens), is 1."""
    seen: list[_Seen] = []

    def keep(state: Tensor) -> None:
        mean = torch.einsum("rtd,rt->rd", state.float(), mask) / mask.sum(1, keepdim=True)
        seen.append(_Seen(mean, state[:, -1]))

    def before(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(given[0] if given else named["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    heard: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        heard.append(given[0])

    handle = module.register_forward_pre_hook(keep)
    try:
        yield heard
    finally:
        handle.remove()


def _end(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[nn.Module, nn.Module]:
    """The norm that stands beside the layers, and the output embeddings."""
    parent = next(module for module in model.modules() if any(child is layers for child in module.children()))
    norms = [child for name, child in parent.named_children() if name in NORMS]
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if len(norms) != 1 or head is None:
        raise SottovoceError(
            f"the logit lens needs a final norm ({', '.join(NORMS)}) beside the layers, and output embeddings: "
            f"{type(model).__name__} has {len(norms)} such norms and {'no' if head is None else 'an'} output layer"
        )
    return norms[0], head
