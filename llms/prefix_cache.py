"""Keys and values of texts that come again and again, such as instructions: a frozen LLM needs to read each once."""

import inspect
from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

Known = list[tuple[Tensor, Tensor]]  # keys and values of each layer, both (heads, tokens, dim)


class Prefixes:
    """What a frozen LLM has read before, the latest `most_tokens` of it.

    Each text is read alone, so that its keys and values do not depend on what it was first read with.
    """

    def __init__(self, most_tokens: int = 8_192) -> None:
        self.most_tokens = most_tokens
        self._known: OrderedDict[tuple[int, ...], Known] = OrderedDict()

    def read(self, model: PreTrainedModel, prefixes: list[list[int]]) -> tuple[Cache, Tensor]:
        """A cache of (rows, heads, tokens, dim) a layer, padded on the left; and (rows, tokens), True where real."""
        device = cast(Tensor, model.get_input_embeddings().weight).device
        rows = [self._read(model, tuple(prefix), device) for prefix in prefixes]
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
    def _read(self, model: PreTrainedModel, prefix: tuple[int, ...], device: torch.device) -> Known:
        known = self._known.get(prefix)
        if known is None or known[0][0].device != device:
            ids = torch.tensor([prefix], device=device)
            past: Any = DynamicCache(config=model.config)
            model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_name(model): past})
            known = [(layer.keys[0], layer.values[0]) for layer in past.layers]
            self._known[prefix] = known
        self._known.move_to_end(prefix)
        while len(self._known) > 1 and sum(map(len, self._known)) > self.most_tokens:
            self._known.popitem(last=False)
        return known


def cache_name(model: PreTrainedModel) -> str:
    """What a model calls its cache of keys and values: since transformers 5.24 `cache`, where it is ours to say."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
