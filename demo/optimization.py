"""Training loop, CTC and SpecAugment of the pre-training scripts."""

import time
from collections.abc import Callable, Iterable, Sequence

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

    The cycle's peak is `lr`; it takes `schedule` steps where that is given, of which `steps` are made.

    Returns:
        What `score` returns at the end; it is called, and printed, after every `every` steps, too.
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


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """CTC loss (Graves et al., 2006) of (batch, frames, symbols) logits; symbol 0 is the blank."""
    sizes = torch.tensor([len(target) for target in targets])
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, torch.cat(list(targets)), lengths, sizes, zero_infinity=True)


def ctc_decode(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Greedy CTC decoding of (batch, frames, symbols) logits: repeats merged, blanks dropped."""
    paths = [path[:length].tolist() for path, length in zip(logits.argmax(-1), lengths, strict=True)]
    return [[symbol for i, symbol in enumerate(path) if symbol and (i == 0 or path[i - 1] != symbol)] for path in paths]


def spec_augment(mel: Tensor, generator: torch.Generator) -> Tensor:
    """SpecAugment (Park et al., 2019) in place, on (batch, mels, frames).

    Two time masks and a frequency mask a clip, filled with the clip's mean.
    """

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    for clip in mel:
        mean = clip.mean()
        for _ in range(2):
            at = below(clip.shape[1] - 24)
            clip[:, at : at + below(16)] = mean
        at = below(clip.shape[0] - 12)
        clip[at : at + below(12)] = mean
    return mel
