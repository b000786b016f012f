"""Answers of several rows together: each as alone, with its own limit, and none goes on behind its end."""

from pathlib import Path

import pytest
from tests.helpers.families import save_family

from sottovoce.llms import CausalLLM, ChatTurn
from sottovoce.llms.row_generation import generate_rows


@pytest.mark.parametrize("ends", [False, True])
def test_rows_end_by_themselves_at_their_limits_or_when_nobody_wants_more(tmp_path: Path, ends: bool) -> None:
    llm = CausalLLM(str(save_family("qwen2", tmp_path, ends=ends)), "float32")
    llm.load()
    llm.eval()
    texts = ("yes", "a low, calm voice", "please repeat what you hear", "it is")
    limits, enough = (2, 9, 5, 9), {3: 4}  # of row 3, its reader has enough after four tokens
    prompts = [llm.embed(llm.chat.prompt([ChatTurn("user", (text,))]), {}).detach() for text in texts]
    told: list[list[int]] = [[] for _ in texts]

    def take(row: int, token: int) -> bool:
        told[row].append(token)
        return len(told[row]) < enough.get(row, 99)

    generate_rows(llm, prompts, limits, take)
    for row, prompt in enumerate(prompts):
        alone = llm.generated_ids([prompt], min(limits[row], enough.get(row, 99)))[0].tolist()
        end = next((at + 1 for at, token in enumerate(alone) if token in llm.chat.stop_ids), len(alone))
        assert told[row] == alone[:end]
    assert ends or [len(row) for row in told] == [2, 9, 5, 4]
