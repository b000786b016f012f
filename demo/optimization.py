"""Training loop, CTC and SpecAugment of the pre-training scripts."""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn


def optimize(
    parameters: Iterable[Tensor],
    loss: Callable[[], Tensor],
    score: Callable[[], dict[str, float]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.02,
    schedule: int = 0,
    every: int = 300,
) -> dict[str, float]:
    """Minimise `loss()`, of the next batch, by AdamW with a one-cycle learning rate; gradients are clipped to norm 1.

    The cycle's peak is `lr`; it takes `schedule` steps where that is given, of which `steps` are made. What `score`
    returns is printed after every `every` steps; returned is the last.
    """
    parameters, start, scores = list(parameters), time.time(), dict[str, float]()
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, schedule or steps, pct_start=0.1)
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        if step % every == 0 or step == steps:
            scores = score()
            shown = {name: round(share, 3) for name, share in scores.items()}
            print(f"step {step}  loss {value.item():.4f}  {shown}  {time.time() - start:.0f} s", flush=True)
    return scores


def ctc_loss(logits: Tensor, lengths: Tensor, texts: Sequence[Sequence[str]], symbols: Sequence[str]) -> Tensor:
    """CTC loss (Graves et al., 2006) of (batch, frames, 1 + symbols) logits, of which the first is the blank's."""
    targets = torch.tensor([symbols.index(symbol) + 1 for text in texts for symbol in text])
    sizes = torch.tensor([len(text) for text in texts])
    return nn.functional.ctc_loss(logits.log_softmax(-1).transpose(0, 1), targets, lengths, sizes, zero_infinity=True)


def ctc_decode(logits: Tensor, lengths: Tensor, symbols: Sequence[str], between: str = "") -> list[str]:
    """Greedy CTC decoding of logits as in `ctc_loss`: repeats merged, blanks dropped."""
    paths = [path[:length].tolist() for path, length in zip(logits.argmax(-1), lengths, strict=True)]
    return [between.join(symbols[place - 1] for place, _ in groupby(path) if place) for path in paths]


def spec_augment(mel: Tensor, generator: torch.Generator) -> Tensor:
    """SpecAugment (Park et al., 2019) in place, on (batch, mels, frames).

    Two time masks and a frequency mask a clip, filled with the clip's mean.
    """
    for clip in mel:
        mean = clip.mean()
        for axis, room, width in ((1, 24, 16), (1, 24, 16), (0, 12, 12)):
            limits = clip.shape[axis] - room, width
            at, masked = (int(torch.randint(limit, (1,), generator=generator)) for limit in limits)
            clip.narrow(axis, at, masked).fill_(mean)
    return mel
