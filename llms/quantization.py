"""Quantised weights of a frozen LLM: 8 bits by LLM.int8(), or 4 by NF4, with bitsandbytes."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from sottovoce.errors import ConfigError
from sottovoce.hub import WEIGHTS
from sottovoce.io import file_sha256
from sottovoce.llms.tuning import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Quantization: TypeAlias = Literal["8bit", "4bit"]
KEY = "llm.quantization"
_BLOCK = 64  # weights of NF4 that share a scale


def check_fits_tuning(quantization: Quantization | None, method: str, config: Any) -> None:
    """`ConfigError` where quantised weights would train themselves, and not by LoRA; or are quantised already."""
    if quantization and method == "weights":
        why = f"weights in {quantization} cannot train: set llm.tuning.method=lora, or leave them as they are"
        raise ConfigError.at(KEY, "conflict", why)
    if quantization and getattr(config, "quantization_config", None):
        raise ConfigError.at(KEY, "conflict", "the checkpoint is quantised already: leave the key out")


def loading_arguments(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given to quantise weights as they are read, on the CPU or this process's GPU.

    Dettmers et al.: LLM.int8() (2022); NF4, QLoRA (2023), section 3. Products are in `dtype`.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        why = "bitsandbytes is not installed: pip install 'sottovoce[quantization]'"
        raise ConfigError.at(KEY, "unavailable", why)
    from transformers import BitsAndBytesConfig

    # It says for every product that float32 is rounded to float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    chosen = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit", bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    return {"quantization_config": chosen, "device_map": {"": "cpu"}}


def keep_gradients(model: nn.Module) -> None:
    """Let no 4-bit weights be repacked when they are first used without a gradient, since then none is left.

    bitsandbytes does that on CPUs with AVX512-BF16 (findings/bitsandbytes_4bit_loses_gradients.sh).
    """
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "support_avx512bf16_for_cpu")]
    for part in parts:
        part.support_avx512bf16_for_cpu = False


def source_of(quantization: Quantization | None, folder: Path) -> dict[str, Any]:
    """What tells quantised weights from others: the files that they are made of, since 4 bits are not always the same.

    Bytes that no value needs are left as the memory was.
    """
    files = {file.name: file_sha256(file) for file in sorted(folder.glob(WEIGHTS[0]))} if quantization else {}
    return {"quantization": quantization, "files": files} if quantization else {}


def stand_in(model: "PreTrainedModel", quantization: Quantization) -> None:
    """Replace the linear maps of the layers of a model without weights by maps of the size of quantised ones."""
    for layer in decoder_layers(model):
        for parent in list(layer.modules()):
            for name, part in parent.named_children():
                if type(part) is nn.Linear:
                    setattr(parent, name, _StandIn(part, quantization))


class _StandIn(nn.Linear):
    """A linear map that takes the memory of a quantised one; its values mean nothing."""

    def __init__(self, like: nn.Linear, quantization: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = like.in_features, like.out_features, like.bias
        size, device = like.weight.numel(), like.weight.device
        shape = tuple(like.weight.shape) if quantization == "8bit" else (-(-size // 2), 1)
        kind = torch.int8 if quantization == "8bit" else torch.uint8
        self.weight = nn.Parameter(torch.zeros(shape, dtype=kind, device=device), requires_grad=False)
        scales = like.out_features if quantization == "8bit" else -(-size // _BLOCK)
        self.scales: Tensor
        self.register_buffer("scales", torch.zeros(scales, device=device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = _Product.apply(input, self.weight, self.out_features)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    """A product with a matrix that is made anew in the backward pass, as quantised ones are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, features: int) -> Tensor:
        ctx.shape = features, x.shape[-1]
        ctx.save_for_backward(packed)
        return x @ packed.new_zeros(ctx.shape, dtype=x.dtype).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_zeros(ctx.shape, dtype=gradient.dtype), None, None
