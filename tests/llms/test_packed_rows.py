"""Rows packed into one sequence: what each row would give alone, no padding but in attention, and who is not packed."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.families import FAMILIES, save_family
from torch import Tensor

from sottovoce.config import recipe as recipes
from sottovoce.errors import ConfigError
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms import CausalLLM
from sottovoce.llms.causal_lm import PooledLayer
from sottovoce.llms.packed_rows import NAME, Batch
from sottovoce.llms.top_tokens import Teaching

# Some rows are longer than the window of 16 that three families have.
LENGTHS, PREFIXES, ANSWERS = [9, 31, 8, 15, 30], [4, 0, 4, 7, 2], [3, 1, 5, 2, 4]  # tokens; a prompt has its prefix


def texts(counts: list[int], seed: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randint(20, 300, (n,), generator=drawn).tolist() for n in counts]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp(request.param))


def loaded(folder: Path, **options: Any) -> CausalLLM:
    llm = CausalLLM(str(folder), options.pop("dtype", "float32"), **options)
    llm.load()
    llm.may_pack = True
    return llm


def rows_of(llm: CausalLLM) -> tuple[list[Tensor], list[list[int]], list[list[int]]]:
    """Prompts, answers and prefixes; what follows a prefix is speech, which has a gradient."""
    prefixes = texts(PREFIXES, 1)
    torch.manual_seed(2)
    speech = [torch.randn(n - len(prefix), llm.dim).to(llm.dtype) for n, prefix in zip(LENGTHS, prefixes, strict=True)]
    prompts = [torch.cat([llm.embed([p], {}), s]) for p, s in zip(prefixes, speech, strict=True)]
    return [prompt.detach().requires_grad_() for prompt in prompts], texts(ANSWERS, 3), prefixes


def packs(llm: CausalLLM) -> bool:
    """A property, by a name that a type checker forgets: it changes when the LLM does."""
    return llm.packs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_row_is_read_as_if_alone(folder: Path, attention: str) -> None:
    try:
        llm = loaded(folder, attn_implementation=attention)
    except ConfigError:  # Gemma 2 has eager attention alone
        llm, attention = loaded(folder), "eager"
    assert packs(llm)
    prompts, answers, prefixes = rows_of(llm)
    together = llm.loss(prompts, answers, prefixes)
    together.total.backward()
    for prompt, answer, prefix, nll in zip(prompts, answers, prefixes, together.per_row, strict=True):
        alone = prompt.detach().requires_grad_()
        whole = torch.cat([alone, llm.embed([answer], {})])[None]
        logits = llm.model(inputs_embeds=whole).logits[0, len(alone) - 1 : -1]
        right = -logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        right.backward()
        torch.testing.assert_close(nll, right, rtol=1e-5, atol=1e-4)
        after = len(prefix)  # which is a constant, where it is read once
        assert prompt.grad is not None and alone.grad is not None
        torch.testing.assert_close(prompt.grad[after:], alone.grad[after:], rtol=1e-4, atol=1e-4)
    assert llm.model.config._attn_implementation == attention


def test_hidden_states_are_pooled_of_rows_that_are_not_packed(folder: Path) -> None:
    llm = loaded(folder)
    prompts, answers, prefixes = rows_of(llm)
    pool = PooledLayer(1, [range(1, n - 2) for n in LENGTHS])
    assert packs(llm)
    got = llm.loss(prompts, answers, prefixes, pool)
    llm.may_pack = False
    right = llm.loss(prompts, answers, prefixes, pool)
    assert got.pooled is not None and right.pooled is not None
    torch.testing.assert_close(got.pooled, right.pooled)
    torch.testing.assert_close(got.per_row, right.per_row)


def test_rows_are_packed_in_training_alone() -> None:
    """Elsewhere several threads may use a model at once, and a packed call changes its attention."""
    module = SpeechLLM(recipes.load("conf/quickstart.yaml"))
    module.configure_model()
    assert not packs(module.llm)
    module.start_stage("joint", 1)
    assert packs(module.llm)


def test_nothing_of_a_step_stays(folder: Path) -> None:
    llm = loaded(folder)
    prompts, answers, prefixes = rows_of(llm)
    for _ in range(2):
        llm.loss(prompts, answers, prefixes).total.backward()
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) is Batch]  # isinstance() would ask dead weak proxies
    assert packs(llm) and not kept


def test_teaching_needs_all_logits_and_gives_the_same_loss(folder: Path) -> None:
    llm = loaded(folder)
    prompts, answers, prefixes = rows_of(llm)
    teaching = Teaching(llm.top_tokens(prompts, answers, 20, 1.0), 1.0)
    taught = llm.loss(prompts, answers, prefixes, teaching=teaching)
    torch.testing.assert_close(taught.per_row, llm.loss(prompts, answers, prefixes).per_row, rtol=1e-5, atol=1e-4)
    assert taught.divergence is not None and taught.divergence.abs() < 1e-3  # of itself


def test_logits_that_are_changed_behind_the_head_are_not_made_in_chunks(folder: Path) -> None:
    llm = loaded(folder)
    prompts, answers, prefixes = rows_of(llm)
    plain = llm.loss(prompts, answers, prefixes).total
    other = loaded(folder)
    forward = other.model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:  # as Granite does
        output = forward(*args, **kwargs)
        output.logits = 3 * output.logits
        return output

    other.model.forward = capped  # type: ignore[method-assign]
    assert packs(other)
    right = sum(other.loss([p], [a]).total for p, a in zip(prompts, answers, strict=True))
    torch.testing.assert_close(other.loss(prompts, answers, prefixes).total, right, rtol=1e-5, atol=1e-4)
    assert abs(right - plain) > 1


def test_all_rows_go_through_at_once_without_padding(folder: Path) -> None:
    llm = loaded(folder)
    assert packs(llm)
    prompts, answers, prefixes = rows_of(llm)
    llm.loss(prompts, answers, prefixes)  # prefixes are known from here on
    seen: list[int] = []
    llm.layers[0].register_forward_hook(lambda *args: seen.append(args[1][0][..., 0].numel()))
    llm.loss(prompts, answers, prefixes)
    assert seen == [sum(LENGTHS) + sum(ANSWERS) - (sum(PREFIXES) if llm.attends_to_all else 0)]


def test_a_model_that_mixes_tokens_beside_attention_is_not_packed(folder: Path) -> None:
    llm = loaded(folder)

    def leaky(_: Any, __: Any, output: Tensor) -> Tensor:  # as a state of Mamba would be
        return output + output.cumsum(-2).roll(1, -2)

    for layer in llm.layers:
        layer.mlp.register_forward_hook(leaky)
    assert not packs(llm)


def test_a_model_with_attention_of_its_own_is_not_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = loaded(folder)
    last: Any = llm.layers[-1].self_attn
    monkeypatch.setattr(last, "forward", lambda hidden_states, **_: (hidden_states, None))
    assert not packs(llm)
    assert llm.model.config._attn_implementation != NAME


def test_compiled_layers_and_other_kinds_of_attention_are_not_packed(folder: Path) -> None:
    llm = loaded(folder)
    llm.compiles = True
    assert not packs(llm)
    other = loaded(folder)
    other.config.get_text_config().layer_types = ["chunked_attention"] * other.depth
    assert not packs(other)


def test_bfloat16_is_packed_too(folder: Path) -> None:
    llm = loaded(folder, dtype="bfloat16")
    assert packs(llm)
    prompts, answers, prefixes = rows_of(llm)
    alone = [llm.loss([p], [a], [x]).total for p, a, x in zip(prompts, answers, prefixes, strict=True)]
    torch.testing.assert_close(llm.loss(prompts, answers, prefixes).per_row, torch.stack(alone), rtol=0.03, atol=0.1)


def test_a_mask_is_kept_once_for_all_layers(tmp_path: Path) -> None:
    """SDPA makes numbers of True and False in each layer, and keeps all of them for the backward pass."""
    llm = loaded(save_family("llama3", tmp_path), attn_implementation="sdpa")
    kept: dict[tuple[int, ...], set[int]] = {}  # storages by shape

    def saved(x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[1] == 1 and x.shape[-1] >= x.shape[-2] == max(LENGTHS):
            kept.setdefault(tuple(x.shape), set()).add(x.untyped_storage().data_ptr())
        return x

    prompts = [torch.randn(max(LENGTHS) - 2, llm.dim).requires_grad_() for _ in range(3)]
    assert packs(llm)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        llm.loss(prompts, [[5, 6]] * 3, [[]] * 3)
    assert llm.depth > 1 and [len(storages) for storages in kept.values()] == [1], kept
