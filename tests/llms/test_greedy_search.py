"""Greedy search of our own: the tokens of transformers' own search, whoever else is in the batch."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.llms.test_causal_lm import folders as folders
from tests.llms.test_causal_lm import llm as llm
from torch import Tensor

from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import Placeholder
from sottovoce.llms.row_batches import known_prefixes
from sottovoce.llms.row_generation import generate_rows

MOST = 24


def ids_of(
    llm: CausalLLM, prompts: list[Tensor], prefixes: Sequence[Sequence[int]] = (), most: int = MOST
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]

    def take(row: int, token: int) -> bool:
        found[row].append(token)
        return True

    generate_rows(llm, prompts, [most] * len(prompts), take, prefixes)
    return found


def texts(llm: CausalLLM, lengths: Sequence[int], seed: int = 0, begins: Sequence[int] = ()) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    count = llm.model.get_input_embeddings().num_embeddings  # type: ignore[attr-defined]
    return [[*begins, *torch.randint(count, (length,), generator=draw).tolist()] for length in lengths]


def ended(llm: CausalLLM, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Up to the stop token, which is kept."""
    cut = [next((i + 1 for i, token in enumerate(row) if token in llm.chat.stop_ids), len(row)) for row in rows]
    return [list(row[:end]) for row, end in zip(rows, cut, strict=True)]


def stopping(llm: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Prompts whose answers end at different steps, some never: what random weights say often is a stop."""
    prompts = llm.embed_all([[text] for text in texts(llm, [9, 4, 17, 6, 11, 30, 5, 8])], {})
    said = [token for row in ids_of(llm, prompts) for token in row[2:]]
    common = max(sorted(set(said)), key=said.count)
    monkeypatch.setattr(llm.chat, "stop_ids", frozenset({common}))
    monkeypatch.setattr(llm.model.generation_config, "eos_token_id", [common])
    monkeypatch.setattr(llm.model.generation_config, "pad_token_id", common)
    return prompts


def test_tokens_are_those_of_transformers(llm: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = stopping(llm, monkeypatch)
    ours = ids_of(llm, prompts)
    assert ours == ended(llm, llm.generated_ids(prompts, MOST).tolist())
    assert len({len(row) for row in ours}) > 1
    assert ours == [ids_of(llm, [prompt])[0] for prompt in prompts]


def test_rows_that_have_ended_leave_the_batch(llm: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = stopping(llm, monkeypatch)
    sizes: list[int] = []
    forward = llm.model.forward

    def counted(**named: Any) -> Any:
        sizes.append(len(named["attention_mask"]))
        return forward(**named)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(llm.model, "forward", counted)
    lengths = [len(row) for row in ids_of(llm, prompts)]
    if not llm.attends_to_all:
        assert set(sizes) == {len(prompts)}  # transformers keeps them all
        return
    assert len(sizes) == max(lengths) and sizes[0] == len(prompts) and sizes == sorted(sizes, reverse=True)
    for step, size in enumerate(sizes):
        going = sum(length > step for length in lengths)
        assert going <= size <= max(going, -(-going * 4 // 3)), (step, size, going)


def test_what_prompts_begin_with_changes_nothing(llm: CausalLLM) -> None:
    begins = texts(llm, [12], seed=5)[0]
    chats: list[Any] = [[text] for text in texts(llm, [3, 9, 5], begins=begins)]
    chats.append([[*begins, *begins], Placeholder("speech"), begins[:3]])
    chats.append([Placeholder("speech"), begins[:5]])
    known = known_prefixes(chats)
    assert known[:3] == [begins] * 3 and known[3] == [*begins, *begins][:-1] and known[4] == []
    speech = {"speech": 0.1 * torch.randn(4, llm.dim, generator=torch.Generator().manual_seed(1)).to(llm.dtype)}
    prompts = llm.embed_all(chats, speech)
    assert ids_of(llm, prompts, known) == ids_of(llm, prompts)


def test_a_prompt_that_others_begin_with_keeps_a_token_to_be_answered_from() -> None:
    assert known_prefixes([[[1, 2, 3]], [[1, 2, 3, 4]]]) == [[1, 2], [1, 2, 3]]
    assert known_prefixes([[[1, 2, 3]]]) == [[]]


def test_a_row_has_its_own_limit(llm: CausalLLM) -> None:
    prompts = llm.embed_all([[text] for text in texts(llm, [5, 7, 6])], {})
    found: list[list[int]] = [[], [], []]

    def take(row: int, token: int) -> bool:
        found[row].append(token)
        return row != 2 or len(found[2]) < 2

    generate_rows(llm, prompts, [3, 9, 9], take)
    whole = ids_of(llm, prompts, most=9)
    assert found == [whole[0][:3], whole[1], whole[2][:2]]
