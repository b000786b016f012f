"""Rows of different length as batches of an LLM: padding on the left, masks, like lengths, prefixes computed once."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def response_mask(responses: list[list[int]], device: torch.device) -> Tensor:
    """(rows, longest), True where a response that is padded on the left has a token."""
    lengths = torch.tensor([len(response) for response in responses], device=device)
    longest = max(len(response) for response in responses)
    return torch.arange(longest, device=device) >= longest - lengths[:, None]


def group_by_length(lengths: list[int], share: float = 0.75) -> list[list[int]]:
    """Row numbers in groups within which the shortest row is at least this share as long as the longest."""
    groups: list[list[int]] = []
    for row in reversed(sorted(range(len(lengths)), key=lambda row: lengths[row])):
        if groups and lengths[row] >= share * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad_left(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (tokens, dim) as (batch, tokens, dim) that end together, and (batch, tokens), True where real."""
    longest = max(len(row) for row in rows)
    x = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=x.device)
    return x, torch.arange(longest, device=x.device) >= longest - lengths[:, None]


def position_mask(rows: list[Tensor], positions: Sequence[Sequence[int]]) -> Tensor:
    """(batch, tokens), 1.0 at these positions of each row of (tokens, dim), after `pad_left`."""
    longest = max(len(row) for row in rows)
    mask = torch.zeros(len(rows), longest, device=rows[0].device)
    for i, (row, chosen) in enumerate(zip(rows, positions, strict=True)):
        mask[i, [longest - len(row) + position for position in chosen]] = 1.0
    return mask


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean in float32 of (batch, tokens, dim) where the mask (batch, tokens) is 1: (batch, dim), 0 for none."""
    return torch.einsum("rtd,rt->rd", x.float(), mask) / mask.sum(1, keepdim=True).clamp(min=1)


def known_prefixes(chats: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Of prompts in segments, the tokens whose keys and values are worth keeping while they are answered together.

    That is the text before the first speech; of prompts that are text alone, what all of these begin with. The last
    token of a prompt stays, to be answered from.
    """
    written = [chat[0] for chat in chats if len(chat) == 1 and isinstance(chat[0], list)]
    alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*written, strict=False))
    common = [tokens[0] for tokens in alike] if len(written) > 1 else []
    begins = [chat[0] if chat and isinstance(chat[0], list) else [] for chat in chats]
    return [
        common[: len(begin) - 1] if len(chat) == 1 else begin[:-1] for chat, begin in zip(chats, begins, strict=True)
    ]


KeyValues: TypeAlias = list[tuple[Tensor, Tensor]]  # of each layer, both (heads, tokens, dim)


class PrefixCache:
    """Keys and values of the latest prefixes, at most `max_tokens` of them, least recently used first to go.

    Each prefix is computed alone, so that its keys and values do not depend on what it was first batched with.
    """

    def __init__(self, max_tokens: int = 8_192) -> None:
        self.max_tokens = max_tokens
        self._entries: OrderedDict[tuple[int, ...], KeyValues] = OrderedDict()

    def batch(self, model: "PreTrainedModel", prefixes: list[list[int]]) -> "tuple[Cache, Tensor]":
        """A cache of (rows, heads, tokens, dim) a layer, padded on the left; and (rows, tokens), True where real.

        Some prefixes may be empty, but not all.
        """
        from transformers import DynamicCache

        device = cast(Tensor, model.get_input_embeddings().weight).device
        number = {prefix: at for at, prefix in enumerate(dict.fromkeys(map(tuple, prefixes)))}
        found = [self._key_values(model, prefix, device) if prefix else None for prefix in number]
        nothing = [(keys[:, :0], values[:, :0]) for keys, values in next(filter(None, found))]
        known = [each or nothing for each in found]
        rows = torch.tensor([number[tuple(prefix)] for prefix in prefixes], device=device)
        longest = max(len(prefix) for prefix in prefixes)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        past: Any = DynamicCache(config=model.config)
        for layer in range(max(map(len, known))):
            pairs = zip(*(each[layer] for each in known), strict=True)  # keys of all prefixes, and values
            padded = (torch.stack([F.pad(x, (0, 0, longest - x.shape[1], 0)) for x in each]) for each in pairs)
            past.update(*(x[rows] for x in padded), layer)
        return past, torch.arange(longest, device=device) >= longest - lengths[:, None]

    @torch.no_grad()
    def _key_values(self, model: "PreTrainedModel", prefix: tuple[int, ...], device: torch.device) -> KeyValues:
        from transformers import DynamicCache

        entry = self._entries.get(prefix)
        if entry is None or entry[0][0].device != device:
            past: Any = DynamicCache(config=model.config)
            ids = torch.tensor([prefix], device=device)
            model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_argument(model): past})
            entry = self._entries[prefix] = [(layer.keys[0], layer.values[0]) for layer in past.layers]
        self._entries.move_to_end(prefix)
        while len(self._entries) > 1 and sum(map(len, self._entries)) > self.max_tokens:
            self._entries.popitem(last=False)
        return entry


def cache_argument(model: "PreTrainedModel") -> str:
    """The name of a model's argument for a cache of keys and values: since transformers 5.24 `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
