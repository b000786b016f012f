"""Text retention of a run: its LLM is scored on text prompts before it is tuned and after."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch

from sottovoce.device import on_device
from sottovoce.errors import SottovoceError, brief
from sottovoce.evaluation import retention as measure
from sottovoce.evaluation.records import Record
from sottovoce.evaluation.retention import SLOTS, TASK, Item, Kept, RetentionScore, read_items
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn, Role

BEFORE, AFTER = "retention-before.jsonl", "retention.jsonl"  # in a run's folder of scores


@torch.no_grad()
def retention(
    llm: CausalLLM, items: Sequence[Item], *, batch_size: int = 48, max_new_tokens: int = 64
) -> RetentionScore:
    """Score an LLM on text prompts, as it is now.

    Items of like length go through it together, by lengths that do not depend on weights: an LLM that has not changed
    says and scores the same to the bit. What an item gets does not depend on its batch but for rounding.

    Raises:
        SottovoceError: there are no items, or one does not fit into the LLM's chat template or context, or its response
            into `max_new_tokens`.
    """
    if not items:
        raise SottovoceError("retention: there are no prompts to score", code="empty", where="retention")
    chats = [[ChatTurn(cast(Role, role), (content,)) for role, content in item.messages] for item in items]
    prompts: list[torch.Tensor] = []
    responses: list[list[int]] = []
    faults: list[SottovoceError] = []
    for chat, item in zip(chats, items, strict=True):
        try:
            prompts.append(llm.embed(llm.chat.prompt(chat), {}))
            responses.append(llm.chat.response(chat, item.response))
            llm.check_lengths(prompts[-1:], [max(max_new_tokens, len(responses[-1]))])
        except SottovoceError as error:
            told = f"{brief(item.messages[-1][1], 100)!r}: {error}"
            faults.append(SottovoceError.at("retention", error.code, told))
    if faults:
        raise SottovoceError.of(faults)
    longest, item = max(zip(map(len, responses), items, strict=True), key=lambda pair: pair[0])
    if longest > max_new_tokens:
        message = f"retention: a response has {longest} tokens, and answers may have {max_new_tokens}: no answer to "
        message += f"{item.messages[-1][1]!r} could be right; take shorter ones"
        raise SottovoceError(message, code="bad-value", where="max_new_tokens")
    kept: dict[int, Kept] = {}
    learns = llm.training
    llm.eval()
    for rows in _batches([len(prompt) for prompt in prompts], batch_size):
        said = llm.generate([prompts[i] for i in rows], max_new_tokens)
        nats = llm.loss([prompts[i] for i in rows], [responses[i] for i in rows]).per_row.tolist()
        for i, text, surprise in zip(rows, said, nats, strict=True):
            kept[i] = Kept(items[i].digest, text, measure.is_right(items[i], text), float(surprise), len(responses[i]))
    llm.train(learns)
    return RetentionScore(tuple(kept[i] for i in range(len(items))))


def _batches(lengths: list[int], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def retention_before(llm: CausalLLM, file: Path, folder: Path, **sizes: int) -> None:
    """Score the LLM before anything of it is trained, and keep that in `folder`; what is there already is kept.

    With LoRA it is the checkpoint's own LLM, also in a run that starts from maps that are trained. With method
    `weights` it is the LLM as the run finds it: call this before the first stage. `sizes` are those of `retention`.
    """
    if not (folder / BEFORE).is_file():
        untuned = llm.untuned() if llm.tuning.method == "lora" else nullcontext()
        with untuned, on_device(llm):  # as the tuned one: it says other last bits on another device
            measure.write_scores(folder / BEFORE, retention(llm, read_items(file), **sizes))


def retention_after(system: str, llm: CausalLLM, file: Path, folder: Path, **sizes: int) -> list[Record]:
    """Score the LLM as it is now, and hold it against what it was; `sizes` are those of `retention`.

    Raises:
        MissingError: `retention_before` has not been called for this folder.
        SottovoceError: as `retention`; or the prompts are others than before.
    """
    before, after = measure.read_scores(folder / BEFORE), retention(llm, read_items(file), **sizes)
    scores = measure.retention_scores(before, after)
    measure.write_scores(folder / AFTER, after)
    return [Record(system, TASK, metric, SLOTS, **score._asdict()) for metric, score in scores.items()]
