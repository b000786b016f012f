"""The frozen LLM's share of a training step, by number format, attention and `compile`: docs/performance.md.

    python benchmarks/step_speed.py --llm FOLDER [--rows 16] [--rounds 5]

A step here is the loss of `--rows` answers and its gradient in the embeddings of the prompts, on one thread: prompts of
25 to 80 tokens, behind 33 that are the same and are read once; answers of 3 tokens, every third of 14. The sides take
turns; what is told is the median of CPU seconds, and how far loss and gradients are from float32.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from shared import table
from torch import Tensor

from sottovoce.llms.causal_lm import CausalLLM

SIDES = [
    (dtype, attention, compiles)
    for dtype in ("float32", "bfloat16") for attention in ("eager", "sdpa") for compiles in (False, True)
]  # fmt: skip
PREFIX, PROMPT, ANSWERS = 33, (25, 80), (14, 3, 3)  # tokens


class Step(NamedTuple):
    """What one step took, and what it gave."""

    seconds: float
    loss: float
    gradient: Tensor  # (tokens, dim), of all rows


class Side:
    """An LLM, and the rows that it answers."""

    def __init__(self, folder: Path, dtype: str, attention: str, compiles: bool, rows: int) -> None:
        self.llm = CausalLLM(str(folder), dtype, attn_implementation=attention)
        self.llm.compiles = compiles
        self.llm.load()
        self.llm.may_pack = True  # as in training
        drawn = torch.Generator().manual_seed(0)
        most = self.llm.model.get_input_embeddings().num_embeddings  # type: ignore[no-untyped-call]

        def text(tokens: int) -> list[int]:
            return torch.randint(most, (tokens,), generator=drawn).tolist()

        prefix = text(PREFIX)
        lengths = torch.randint(*PROMPT, (rows,), generator=drawn).tolist()
        self.prefixes = [prefix] * rows
        self.prompts = [self.llm.embed([prefix + text(length)], {}).detach() for length in lengths]
        self.answers = [text(ANSWERS[row % len(ANSWERS)]) for row in range(rows)]

    def step(self) -> Step:
        prompts = [prompt.clone().requires_grad_() for prompt in self.prompts]
        began = time.process_time()
        loss = self.llm.loss(prompts, self.answers, self.prefixes).total
        loss.backward()
        seconds = time.process_time() - began
        return Step(seconds, loss.item(), torch.cat([p.grad.float() for p in prompts if p.grad is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="a folder as transformers has it")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sides = [Side(arguments.llm, *side, arguments.rows) for side in SIDES]
    first = [side.step() for side in sides]
    _ = [side.step() for side in sides]  # what is compiled in the second step, as for a batch of one row
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(arguments.rounds):
        for side, seconds in zip(sides, taken, strict=True):
            seconds.append(side.step().seconds)
    medians = [statistics.median(seconds) for seconds in taken]
    right = first[0]
    lines = [
        (
            dtype, attention, "yes" if compiles else "", f"{median:.2f}", f"{median / medians[0]:.2f}",
            f"{100 * abs(step.loss / right.loss - 1):.2f}",
            f"{100 * float((step.gradient - right.gradient).norm() / right.gradient.norm()):.1f}",
        )
        for (dtype, attention, compiles), median, step in zip(SIDES, medians, first, strict=True)
    ]  # fmt: skip
    heads = ("LLM", "attention", "compiled", "CPU s a step", "ratio", "loss, % off", "gradients, % off")
    print(table(heads, lines, words=3))


if __name__ == "__main__":
    main()
