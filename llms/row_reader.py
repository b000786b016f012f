"""How a causal LM reads prompts and responses: packed where it can be, else in padded batches of like length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.llms.compiled_layers import compile_layers
from sottovoce.llms.frozen_head_loss import FrozenHeadLoss
from sottovoce.llms.packed_rows import attention_kinds, can_pack, has_plain_head, packed_logits, packed_states
from sottovoce.llms.row_batches import PrefixCache, cache_argument, group_by_length, pad_left, response_mask

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM

PACKABLE = {"full_attention", "sliding_attention"}  # as transformers names what a layer does


class Packing(NamedTuple):
    """Whether rows go through a model as one sequence; and whether logits are a frozen map, so made in chunks."""

    rows: bool = False
    plain_head: bool = False


class RowReader:
    """Logits and losses of responses. Rows are "tails" of (tokens, dim): all after a prefix, the response included."""

    def __init__(self, llm: "CausalLLM") -> None:
        self.llm = llm
        self._known: dict[tuple[int, str], Packing] = {}  # by model, and by device: on meta it has no values

    @property
    def packing(self) -> Packing:
        """What the model can do, tried when it is first asked for."""
        llm = self.llm
        kinds = set(attention_kinds(llm.config.get_text_config()))
        if not llm.may_pack or llm.compiles or llm.sharded or llm.tuning.recompute or not kinds <= PACKABLE:
            return Packing()
        key = (id(llm.model), llm.model.device.type)
        if key not in self._known:
            self._known[key] = self._tried()
        return self._known[key]

    def groups(self, lengths: Sequence[int], *, pooled: bool = False) -> list[list[int]]:
        """Row numbers that go through the model together. Where weights are sharded, all: every process must make the
        same calls, whatever its rows are.
        """
        together = self.llm.sharded or (self.packing.rows and not pooled)
        return [list(range(len(lengths)))] if together else group_by_length(list(lengths))

    def read(
        self, tails: list[Tensor], responses: list[list[int]], prefixes: list[list[int]], *, pooled: bool = False,
        all_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Negative log-likelihood of each response, (rows,), and logits, (tokens, vocabulary).

        There are none where they are made in chunks, which `all_logits` forbids. `pooled`: somebody needs hidden
        states of (rows, tokens, dim).
        """
        if self.packing.plain_head and not (pooled or all_logits):
            states = packed_states(self.llm.model, tails, _counts(responses), prefixes, self.llm.prefix_cache)
            head: Any = self.llm.model.get_output_embeddings()
            loss: Any = FrozenHeadLoss.apply
            return _row_sums(loss(states, head.weight, head.bias, _tokens(responses, states.device)), responses), None
        logits = self.logits(tails, responses, prefixes, pooled=pooled)
        nll = F.cross_entropy(logits.float(), _tokens(responses, logits.device), reduction="none")
        return _row_sums(nll, responses), logits

    def logits(
        self, tails: list[Tensor], responses: list[list[int]], prefixes: list[list[int]], *, pooled: bool = False
    ) -> Tensor:
        """(tokens, vocabulary), for all tokens of all responses."""
        if self.packing.rows and not pooled:
            return packed_logits(self.llm.model, tails, _counts(responses), prefixes, self.llm.prefix_cache)
        return self._padded_logits(tails, responses, prefixes)

    def _padded_logits(self, tails: list[Tensor], responses: list[list[int]], prefixes: list[list[int]]) -> Tensor:
        llm = self.llm
        x, real = pad_left(tails)
        past, before = llm.prefix_cache.batch(llm.model, prefixes) if any(prefixes) else (None, real[:, :0])
        longest = max(len(response) for response in responses)
        if llm.compiles:
            compile_layers(llm.layers)
        logits = llm.model(
            inputs_embeds=x,
            attention_mask=torch.cat([before, real], 1).long(),
            position_ids=(before.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0),
            use_cache=past is not None,
            logits_to_keep=longest + 1,
            **{cache_argument(llm.model): past},
        ).logits[:, :-1]  # (rows, longest, vocabulary): the last position predicts nothing
        return cast(Tensor, logits[response_mask(responses, logits.device)])

    @torch.no_grad()
    def _tried(self) -> Packing:
        llm = self.llm
        training = llm.model.training
        llm.model.train(False)  # dropout would tell two readings apart
        try:
            prefix = [0, 1] if llm.attends_to_all else []
            ends = [[2, 3, 4, 5, 6], [7, 8, 9]]
            whole = [llm.embed([prefix + end], {}) for end in ends]
            alone = [self._padded_logits([row], [end[-2:]], [[]]) for row, end in zip(whole, ends, strict=True)]
            tails = [row[len(prefix) :] for row in whole]
            packed = {"tails": tails, "counts": [2, 2], "prefixes": [prefix] * 2, "cache": PrefixCache()}
            if not can_pack(llm.model, llm.depth, packed, torch.cat(alone)):
                return Packing()
            plain = not llm.trainable_names and has_plain_head(llm.model, packed)
            return Packing(rows=True, plain_head=plain)
        finally:
            llm.model.train(training)


def _counts(responses: list[list[int]]) -> list[int]:
    return [len(response) for response in responses]


def _tokens(responses: list[list[int]], device: torch.device) -> Tensor:
    return torch.tensor([token for response in responses for token in response], device=device)


def _row_sums(nll: Tensor, responses: list[list[int]]) -> Tensor:
    """(rows,): the sum over each response's tokens, of which `nll` (tokens,) has all."""
    counted = response_mask(responses, nll.device)
    return nll.new_zeros(counted.shape).masked_scatter(counted, nll).sum(1)
