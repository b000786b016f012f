"""Generation of several answers together, each with its own limit, told token by token."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from sottovoce.llms.greedy_search import greedy_search

if TYPE_CHECKING:
    from sottovoce.llms.causal_lm import CausalLLM

Take: TypeAlias = Callable[[int, int], bool]  # row, token -> whether the row wants more


class RowGenerator(Protocol):
    """Another process that runs the LLM; see `vllm_server`.

    Attributes:
        context: how many tokens it reads, prompt and answer together; None where it does not say.
    """

    context: int | None

    def generated_ids(self, prompts: Sequence[Tensor], max_new_tokens: int) -> Tensor:
        """As `CausalLLM.generated_ids`."""

    def generate_rows(self, prompts: Sequence[Tensor], limits: Sequence[int], take: Take) -> None:
        """As the function of this module; `take` may be called from several threads, for different rows."""


def generate_rows(
    llm: "CausalLLM", prompts: Sequence[Tensor], limits: Sequence[int], take: Take,
    prefixes: Sequence[Sequence[int]] = (),
) -> None:  # fmt: skip
    """Greedy search for several prompts (tokens, dim) together, until each row has ended.

    A row ends with its stop token, which is told, after `limits[row]` tokens, or where `take` says so. Lengths are not
    checked, see `CausalLLM.check_lengths`; `prefixes` as in `CausalLLM.generate`.
    """
    if llm.remote is not None:
        llm.remote.generate_rows(prompts, limits, take)
        return
    state = RowState(limits, llm.chat.stop_ids, take)
    if llm.attends_to_all and not llm.sharded:
        greedy_search(llm, prompts, llm.cacheable(prefixes, len(prompts)), state)
    else:  # caches of other kinds, and processes that must make the same calls
        watch: Any = StoppingCriteriaList([_Rows(state)])
        llm.generated_ids(list(prompts), max(limits), stopping_criteria=watch)


class RowState:
    """Which rows have ended, by the tokens that they were told."""

    def __init__(self, limits: Sequence[int], stop_ids: frozenset[int], take: Take) -> None:
        self.limits, self.stop_ids, self.take = limits, stop_ids, take
        self.told, self.ended = [0] * len(limits), [False] * len(limits)

    def add(self, row: int, token: int) -> bool:
        """Tell a row its next token, unless it has ended; whether it goes on."""
        if not self.ended[row]:
            self.told[row] += 1
            wanted = self.take(row, token)
            self.ended[row] = not wanted or token in self.stop_ids or self.told[row] >= self.limits[row]
        return not self.ended[row]


class _Rows(StoppingCriteria):
    def __init__(self, state: RowState) -> None:
        self.state = state

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        for row, token in enumerate(input_ids[:, -1].tolist()):
            self.state.add(row, token)
        return torch.tensor(self.state.ended, device=input_ids.device)
