"""Hidden states of an LLM after every layer, pooled over positions, and the logit lens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sottovoce.errors import SottovoceError
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.row_batches import masked_mean, pad_left, position_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of the norm between the last layer and the output embeddings, beside the layers
NORMS = ("norm", "final_layernorm", "final_layer_norm", "final_norm", "ln_f")


class HiddenStates(NamedTuple):
    """Reduced hidden states, on the CPU. There is one more than layers: the input of the first, then every output."""

    pooled: Tensor  # (rows, states, dim) in float32, the mean over the chosen positions
    ranks: Tensor  # (rows, states) in int32, the logit lens: how many tokens a state ranks before `tokens`
    tokens: Tensor  # (rows,) in int64, the model's own next ones


class _State(NamedTuple):
    """A hidden state, reduced at once: (rows, dim) each, `last` in the LLM's dtype."""

    pooled: Tensor
    last: Tensor


@torch.no_grad()
def read_hidden_states(llm: CausalLLM, prompts: list[Tensor], positions: Sequence[Sequence[int]]) -> HiddenStates:
    """Run prompts once, and reduce every hidden state. A row does not depend on its batch mates.

    The last state is before the final norm, unlike transformers' `hidden_states[-1]`. The logit lens is the final norm
    and the output embeddings, applied to a state of the last position, which predicts the answer's first token.

    Args:
        llm: loaded.
        prompts: each (tokens, dim), from `CausalLLM.embed`.
        positions: of each prompt, those over which states are averaged; at least one.

    Raises:
        SottovoceError: a prompt has no positions, or is longer than the LLM's context; or its architecture ends in
            another way than norm and output embeddings.
    """
    if empty := [row for row, chosen in enumerate(positions) if not len(chosen)]:
        raise SottovoceError(f"prompt {empty[0]} has no positions to average: its slots are empty", code="empty")
    llm.check_lengths(prompts, [0] * len(prompts))
    x, real = pad_left(prompts)
    norm, head = _norm_and_head(llm.model, llm.layers)
    with _states(llm.layers, position_mask(prompts, positions)) as states, _inputs(head) as inputs:
        at = (real.cumsum(1) - 1).clamp(min=0)
        llm.model(inputs_embeds=x, attention_mask=real.long(), position_ids=at, use_cache=False, logits_to_keep=1)
    if not torch.allclose(norm(states[-1].last), inputs[0][:, -1], rtol=1e-2, atol=1e-4):
        why = f"the logit lens does not fit {type(llm.model).__name__}: something else than its norm stands between "
        raise SottovoceError(f"{why}its last layer and its output embeddings", code="mismatch")
    ranks, tokens = _logit_lens([state.last for state in states], norm, head)
    return HiddenStates(torch.stack([state.pooled for state in states], 1).cpu(), ranks.cpu(), tokens.cpu())


def _logit_lens(states: list[Tensor], norm: nn.Module, head: nn.Module) -> tuple[Tensor, Tensor]:
    """How many tokens each state ranks before the last state's first, (rows, states), and that token, (rows,)."""
    tokens = head(norm(states[-1])).argmax(-1)
    ranks = []
    for state in states:  # one after another: a vocabulary is large
        logits = head(norm(state))
        ranks.append((logits > logits.gather(1, tokens[:, None])).sum(1).int())
    return torch.stack(ranks, 1), tokens


@contextmanager
def _states(layers: nn.ModuleList, mask: Tensor) -> Iterator[list[_State]]:
    """While a batch goes through the model: its states, averaged where `mask`, (rows, tokens), is 1."""
    states: list[_State] = []

    def keep(state: Tensor) -> None:
        states.append(_State(masked_mean(state, mask), state[:, -1]))

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(arguments[0] if arguments else named["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that a module gets meanwhile."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def _norm_and_head(model: "PreTrainedModel", layers: nn.ModuleList) -> tuple[nn.Module, nn.Module]:
    """The norm beside the layers, and the output embeddings."""
    parent = next(module for module in model.modules() if any(child is layers for child in module.children()))
    norms = [child for name, child in parent.named_children() if name in NORMS]
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if len(norms) != 1 or head is None:
        why = f"the logit lens needs a final norm ({', '.join(NORMS)}) beside the layers, and output embeddings: "
        why += f"{type(model).__name__} has {len(norms)} such norms and {'no' if head is None else 'an'} output layer"
        raise SottovoceError(why, code="mismatch")
    return norms[0], head
