"""Quantised weights of a frozen LLM: near the weights as they were, for loss and for gradients of what goes in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.families import save_family
from torch import Tensor

from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn, Placeholder
from sottovoce.llms.quantization import Quantization, stand_in
from sottovoce.llms.tuning_config import Tuning

TRAINED = "sottovoce:demo/backbones/llm"
BITS = pytest.mark.parametrize(("bits", "most"), [("8bit", 0.05), ("4bit", 0.35)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("qwen2", tmp_path_factory.mktemp("llm"))


def opened(folder: Path | str, bits: Quantization | None, **more: Any) -> CausalLLM:
    torch.manual_seed(0)
    llm = CausalLLM(str(folder), "float32", quantization=bits, **more)
    llm.load()
    return llm


def loss_and_gradient(llm: CausalLLM) -> tuple[Tensor, Tensor]:
    speech = (0.05 * torch.randn(6, llm.dim, generator=torch.Generator().manual_seed(1))).requires_grad_()
    turns = [ChatTurn("user", ("hear", Placeholder("a")))]
    prompt = llm.embed(llm.chat.prompt(turns), {"a": speech})
    loss = llm.loss([prompt], [llm.chat.response(turns, "the speaker is a child")]).total
    loss.backward()  # type: ignore[no-untyped-call]
    assert speech.grad is not None
    return loss.detach(), speech.grad


@BITS
def test_loss_and_gradients_are_near_those_of_the_weights_as_they_were(bits: Quantization, most: float) -> None:
    (loss, gradient), quantised = loss_and_gradient(opened(TRAINED, None)), opened(TRAINED, bits)
    found, felt = loss_and_gradient(quantised)
    torch.testing.assert_close(found, loss, rtol=most, atol=0)
    assert 0 < float((felt - gradient).norm() / gradient.norm()) < most
    weight = quantised.layers[0].mlp.up_proj.weight
    assert weight.dtype in (torch.int8, torch.uint8) and not any(p.requires_grad for p in quantised.parameters())


@BITS
def test_a_quantised_llm_answers_and_is_another_by_its_fingerprint(bits: Quantization, most: float) -> None:
    llm, plain = opened(TRAINED, bits), opened(TRAINED, None)
    prompt = llm.embed(llm.chat.prompt([ChatTurn("user", ("say it",))]), {})
    assert len(llm.generate([prompt], 4)) == 1
    assert llm.fingerprint() == opened(TRAINED, bits).fingerprint() != plain.fingerprint()
    llm.unload()
    llm.load()
    assert torch.isfinite(loss_and_gradient(llm)[0])


@BITS
def test_an_answer_before_a_step_changes_neither_loss_nor_gradient(bits: Quantization, most: float) -> None:
    """On some CPUs bitsandbytes repacks 4-bit weights when they are first used without a gradient."""
    llm = opened(TRAINED, bits).eval()
    loss, gradient = loss_and_gradient(llm)
    with torch.no_grad():
        llm.generate([llm.embed(llm.chat.prompt([ChatTurn("user", ("say it",))]), {})], 4)
    again, felt = loss_and_gradient(llm)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(felt, gradient)


@BITS
def test_lora_trains_on_quantised_weights(bits: Quantization, most: float, folder: Path) -> None:
    llm = opened(folder, bits, tuning=Tuning(method="lora", rank=2))
    llm.set_trainable(True)
    loss_and_gradient(llm)
    learned = {name for name, p in llm.named_parameters() if p.grad is not None}
    assert learned == set(llm.trainable_names) and learned


@BITS
def test_a_stand_in_without_values_takes_as_many_bytes(bits: Quantization, most: float, folder: Path) -> None:
    real, planned = opened(folder, bits), CausalLLM(str(folder), "float32", quantization=bits)
    with torch.device("meta"):
        planned.build()
    sizes = [sum(p.nbytes for p in llm.layers.parameters()) for llm in (real, planned)]
    assert sizes[0] == sizes[1] < sum(p.nbytes for p in opened(folder, None).layers.parameters()) / 3
    model = opened(folder, None).model
    stand_in(model, bits)
    out = model(inputs_embeds=torch.ones(1, 3, real.dim, requires_grad=True))
    out.logits.sum().backward()  # runs forward and backward


def test_quantised_weights_do_not_train_themselves(folder: Path) -> None:
    with refused("conflict", "llm.quantization"):
        opened(folder, "8bit", tuning=Tuning(method="weights"))
    with pytest.MonkeyPatch.context() as patch, refused("unavailable", "llm.quantization"):
        patch.setattr("sottovoce.llms.quantization.find_spec", lambda package: None)
        opened(folder, "8bit")
