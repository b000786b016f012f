"""Cache of the keys and values of prompt prefixes that recur, such as instructions, under a frozen LLM."""

import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

KeyValues: TypeAlias = list[tuple[Tensor, Tensor]]  # of each layer, both (heads, tokens, dim)


class PrefixCache:
    """Keys and values of the latest prefixes, at most `max_tokens` of them, least recently used first to go.

    Each prefix is computed alone, so that its keys and values do not depend on what it was first batched with.
    """

    def __init__(self, max_tokens: int = 8_192) -> None:
        self.max_tokens = max_tokens
        self._entries: OrderedDict[tuple[int, ...], KeyValues] = OrderedDict()

    def batch(self, model: "PreTrainedModel", prefixes: list[list[int]]) -> "tuple[Cache, Tensor]":
        """A cache of (rows, heads, tokens, dim) a layer, padded on the left; and (rows, tokens), True where real."""
        from transformers import DynamicCache

        device = cast(Tensor, model.get_input_embeddings().weight).device
        rows = [self._key_values(model, tuple(prefix), device) for prefix in prefixes]
        longest = max(len(prefix) for prefix in prefixes)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        past: Any = DynamicCache(config=model.config)
        for layer in range(max(map(len, rows))):
            keys, values = (
                torch.stack([F.pad(row[layer][i], (0, 0, longest - row[layer][i].shape[1], 0)) for row in rows])
                for i in (0, 1)
            )
            past.update(keys, values, layer)
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
