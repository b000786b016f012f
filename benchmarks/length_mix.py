"""The frozen LLM's share of a training step on rows of real lengths, this build against another: docs/performance.md.

    python benchmarks/length_mix.py --against ../before --llm FOLDER [--dtype float32] [--attention sdpa] [--rows 16]
        [--batches 8] [--rounds 3]

The other build is a checkout (`git worktree add ../before COMMIT`). Durations are drawn from the quantiles of
LibriSpeech's dev-clean (as Lhotse describes it), 10 speech tokens a second and replies at its rate, 2.8 words of 1.35
tokens a second; --rows in a batch, in the order in which they are drawn; behind 33 tokens that are the same and are
read once. `--equal` gives all rows the mean duration. A step is the loss and its gradient in the prompts; one thread a
side, which take turns step by step. Told are means of CPU seconds, peak memory, and how far the losses are apart.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer_gate import wait
from peer_step import Side, measure
from shared import table

SHARES = (0, 0.1, 0.5, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)  # %, and seconds below which these are:
SECONDS = (1.4, 1.6, 1.8, 1.9, 2.4, 2.7, 3.8, 5.9, 9.3, 13.3, 16.4, 23.8, 28.5, 32.3, 32.6)
MEAN = 7.2  # seconds
PREFIX, AFTER, SPEECH, REPLY = 33, 12, 10, 2.8 * 1.35  # tokens; of the last two, a second
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True, help="a folder as transformers has it")
    parser.add_argument("--against", type=Path, help="a checkout of another build")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--losses", type=Path, help=argparse.SUPPRESS)  # this process is a side
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.losses:
        return train(arguments)
    with tempfile.TemporaryDirectory() as name:
        sides: dict[str, Side] = {}
        try:
            for side, build in {"this": HERE.parent, "other": arguments.against.resolve()}.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--losses", f"{name}/{side}.json"]
                env = {**os.environ, "PYTHONPATH": str(build / "src"), "OMP_NUM_THREADS": "1"}
                sides[side] = Side(command, env, Path(name) / f"{side}.log")
            seconds, peaks = measure(sides, arguments.batches, arguments.rounds)
        finally:
            for side in sides.values():
                side.process.kill()
        losses = {side: json.loads(Path(f"{name}/{side}.json").read_text("utf-8")) for side in sides}
    means = {side: statistics.mean(took) for side, took in seconds.items()}
    off = max(abs(a / b - 1) for a, b in zip(losses["this"], losses["other"], strict=False))
    rows = [(side, f"{means[side]:.2f}", f"{means[side] / means['other']:.2f}", f"{peaks[side]:.2f}") for side in sides]
    print(table((f"{arguments.dtype}, {arguments.attention}", "CPU s a step", "ratio", "peak, GB"), rows))
    print(f"\nlosses at most {100 * off:.2g} % apart")


def train(arguments: argparse.Namespace) -> None:
    """A side: steps of the same batches again and again, each when it is its turn."""
    from sottovoce.llms.causal_lm import CausalLLM

    llm = CausalLLM(str(arguments.llm), arguments.dtype, attn_implementation=arguments.attention)
    llm.load()
    llm.may_pack = True  # as in training
    drawn = np.random.default_rng(0)
    most = llm.model.get_input_embeddings().num_embeddings  # type: ignore[no-untyped-call]

    def text(tokens: int) -> list[int]:
        return drawn.integers(most, size=tokens).tolist()

    prefix = text(PREFIX)
    batches = []
    for _ in range(arguments.batches):
        shares = drawn.uniform(0, 100, arguments.rows)
        durations = np.full(arguments.rows, MEAN) if arguments.equal else np.interp(shares, SHARES, SECONDS)
        prompts = [llm.embed([prefix + text(round(AFTER + SPEECH * t))], {}).detach() for t in durations]
        batches.append((prompts, [text(max(round(REPLY * t), 2)) for t in durations]))
    losses: list[float] = []
    while True:
        for fixed, replies in batches:
            prompts = [prompt.clone().requires_grad_() for prompt in fixed]
            loss = llm.loss(prompts, replies, [prefix] * len(prompts)).total
            loss.backward()
            losses.append(loss.item())
            arguments.losses.write_text(json.dumps(losses), "utf-8")
            wait()


if __name__ == "__main__":
    main()
