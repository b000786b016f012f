"""What is unfrozen: exactly the named linear maps of the named layers, in every family, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, save_family, tokenizer_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sottovoce.llms.causal_lm import CausalLLM, PooledLayer, placeholder_spans
from sottovoce.llms.chat_template import ChatTurn, Placeholder
from sottovoce.llms.tuning import layer_numbers, target_names, tune
from sottovoce.llms.tuning_config import Tuning
from sottovoce.serving.export import merged


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_family(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def bare(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def opened(folder: Path, tuning: Tuning | None = None) -> CausalLLM:
    torch.manual_seed(0)
    llm = CausalLLM(str(folder), "float32", tuning=tuning)
    llm.load()
    return llm


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("0-2", [0, 1, 2]), ("1", [1]), ("0, 2-3", [0, 2, 3]), ("all", [0, 1, 2, 3]), ("3,0", [0, 3]), ("1-2,2", [1, 2])],
)
def test_ranges(layers: str, numbers: list[int]) -> None:
    assert layer_numbers(layers, 4) == numbers


@pytest.mark.parametrize("layers", ["4", "0-4", "2-1", "", "a", "0-", "-1", "1;2", "0,,1"])
def test_a_range_that_matches_nothing_says_what_there_is(layers: str) -> None:
    with refused("bad-value", "llm.tuning.layers"):
        layer_numbers(layers, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_the_linear_maps_of_the_layer_and_no_others(family: str, folders: dict[str, Path]) -> None:
    model = bare(folders[family])
    names = target_names(model, Tuning(method="lora", layers="1"))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(names) == {name for name in linear if name.startswith("model.layers.1.")} and len(names) >= 4
    assert target_names(model, Tuning(layers="0", targets=["down_proj"])) == ["model.layers.0.mlp.down_proj"]
    assert target_names(model, Tuning(layers="0", targets=["self_attn.o_proj"])) == ["model.layers.0.self_attn.o_proj"]


def test_an_unknown_target_gets_the_nearest(folders: dict[str, Path]) -> None:
    with refused("unknown-name", "llm.tuning.targets") as caught:
        target_names(bare(folders["qwen2"]), Tuning(layers="0", targets=["q_porj"]))
    assert "Did you mean 'q_proj'" in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "weights"])
def test_only_what_is_named_is_unfrozen(family: str, method: str, folders: dict[str, Path]) -> None:
    model = bare(folders[family])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    names = tune(model, Tuning(method=method, layers="0", rank=2))  # type: ignore[arg-type]
    assert names and all(name.startswith("model.layers.0.") for name in names)
    if method == "weights":
        assert set(names) <= set(before)
    else:
        assert all(".lora_" in name for name in names)
        kept = {n.replace(".base_layer.", "."): w for n, w in model.named_parameters() if ".lora_" not in n}
        assert set(kept) == set(before) and all(torch.equal(kept[name], before[name]) for name in before)


def test_lora_changes_nothing_before_it_learns_and_can_be_switched_off_after(folders: dict[str, Path]) -> None:
    plain, tuned = opened(folders["llama3"]), opened(folders["llama3"], Tuning(method="lora", layers="0", rank=2))
    ids = torch.arange(3, 15)[None]
    expected = plain.model(input_ids=ids).logits
    assert torch.equal(tuned.model(input_ids=ids).logits, expected)
    tuned.set_trainable(True)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert not torch.allclose(tuned.model(input_ids=ids).logits, expected, atol=1e-3)
    with tuned.untuned():
        assert torch.equal(tuned.model(input_ids=ids).logits, expected)
    assert not torch.allclose(tuned.model(input_ids=ids).logits, expected, atol=1e-3)
    assert {name for name, weight in tuned.named_parameters() if weight.requires_grad} == set(tuned.trainable_names)
    assert plain.fingerprint() == tuned.fingerprint() == tuned.fingerprint(frozen=True)


def test_fingerprints_tell_the_checkpoint_from_what_was_trained(folders: dict[str, Path]) -> None:
    tuning = Tuning(method="weights", layers="1", targets=["q_proj"])
    plain, tuned = opened(folders["qwen2"]), opened(folders["qwen2"], tuning)
    frozen = tuned.fingerprint(frozen=True)
    with torch.no_grad():
        tuned.get_parameter(next(name for name in tuned.trainable_names if name.endswith("weight"))).add_(1.0)
    assert tuned.fingerprint() == plain.fingerprint() and tuned.fingerprint(frozen=True) == frozen
    with torch.no_grad():
        tuned.layers[0].mlp.up_proj.weight.add_(1.0)  # type: ignore[operator, union-attr]
    assert tuned.fingerprint(frozen=True) != frozen
    with refused("conflict", "llm.tuning.method"), tuned.untuned():
        pass


def test_weights_want_float32(folders: dict[str, Path]) -> None:
    with refused("conflict", "llm.dtype"):
        CausalLLM(str(folders["qwen2"]), "bfloat16", tuning=Tuning(method="weights", layers="0"))


def test_lora_learns_in_float32_beside_bfloat16(folders: dict[str, Path]) -> None:
    llm = CausalLLM(str(folders["qwen2"]), "bfloat16", tuning=Tuning(method="lora", layers="0", rank=2))
    llm.load()
    llm.set_trainable(True)
    assert {w.dtype for w in llm.parameters() if w.requires_grad} == {torch.float32}
    prompt = llm.embed(llm.chat.prompt([ChatTurn("user", ("hello",))]), {})
    llm.loss([prompt], [[5, 6]]).total.backward()
    grads = [w.grad for w in llm.parameters() if w.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(g.any() for g in grads if g is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_pooled_is_the_mean_of_the_layers_output(family: str, folders: dict[str, Path]) -> None:
    """Against transformers' own hidden states of each row alone; and it does not depend on batch mates."""
    llm = opened(folders[family])
    torch.manual_seed(1)
    speech = {name: torch.randn(length, llm.dim) * 0.1 for name, length in (("a", 3), ("b", 7), ("c", 40))}
    chats = [llm.chat.prompt([ChatTurn("user", ("so: ", Placeholder(name), " well"))]) for name in speech]
    prompts = [llm.embed(chat, speech) for chat in chats]
    rows = [list(placeholder_spans(chat, speech)[name]) for chat, name in zip(chats, speech, strict=True)]
    for (name, fill), prompt, row in zip(speech.items(), prompts, rows, strict=True):
        assert torch.equal(prompt[row], fill), name
    responses = [[5, 6, 7], [8], [9, 10]]
    together = llm.loss(prompts, responses, pool=PooledLayer(0, rows)).pooled
    assert together is not None and together.shape == (3, llm.dim)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        states = llm.model(inputs_embeds=prompt[None], output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(together[i], states[row].mean(0), rtol=1e-4, atol=1e-5)
    alone = llm.loss(prompts[1:2], responses[1:2], pool=PooledLayer(0, rows[1:2])).pooled
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_a_row_without_positions_has_a_mean_of_zeros(folders: dict[str, Path]) -> None:
    llm = opened(folders["qwen2"])
    prompt = llm.embed(llm.chat.prompt([ChatTurn("user", ("hello",))]), {})
    pooled = llm.loss([prompt], [[5]], pool=PooledLayer(1, [[]])).pooled
    assert pooled is not None and not pooled.any()


def saved(folder: Path, model_type: str, **sizes: int) -> Path:
    tokenizer = tokenizer_of("qwen2")
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, eos_token_id=1, bos_token_id=None, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, whose weights transformers keeps as one tensor."""
    sizes = {"intermediate_size": 64, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    return saved(tmp_path_factory.mktemp("moe"), "qwen3_moe", **sizes, num_key_value_heads=2, head_dim=8)


def test_experts_are_part_of_full_tuning_and_what_is_passed_over_is_told(experts: Path) -> None:
    full, lora = opened(experts, Tuning(method="weights")), opened(experts, Tuning(method="lora"))
    assert sum(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in full.trainable_names) == 4
    assert full.passed_over and "experts" not in full.passed_over and "mlp.gate.weight" in full.passed_over
    assert not any("experts" in name for name in lora.trainable_names)
    assert lora.passed_over and "mlp.experts.gate_up_proj" in lora.passed_over and "12,544" in lora.passed_over
    assert opened(experts, Tuning(method="lora", targets=["q_proj"])).passed_over is None  # as it was asked for


def test_experts_take_lora_where_they_are_named(experts: Path) -> None:
    tuning = Tuning(method="lora", targets=["q_proj", "experts.gate_up_proj", "down_proj"], rank=2)
    plain, tuned = opened(experts), opened(experts, tuning)
    ids = torch.arange(3, 15)[None]
    expected = plain.model(input_ids=ids).logits
    assert torch.equal(tuned.model(input_ids=ids).logits, expected) and tuned.fingerprint() == plain.fingerprint()
    with torch.no_grad():
        for name in tuned.trainable_names:
            tuned.get_parameter(name).add_(0.05)
    learned = tuned.model(input_ids=ids).logits
    assert (learned - expected).abs().max() > 1e-2
    plain.model.load_state_dict(merged(tuned.model))
    torch.testing.assert_close(plain.model(input_ids=ids).logits, learned, rtol=1e-4, atol=1e-5)
    with tuned.untuned():
        assert torch.equal(tuned.model(input_ids=ids).logits, expected)
    with refused("conflict", "llm.tuning.dropout"):
        opened(experts, Tuning(method="lora", targets=["down_proj"], dropout=0.1))


@pytest.mark.parametrize("method", ["lora", "weights"])
def test_the_linear_maps_of_gpt2_are_found(method: Any, tmp_path: Path) -> None:
    llm = opened(saved(tmp_path, "gpt2"), Tuning(method=method, rank=2))
    assert len(llm.trainable_names) == 16 and llm.passed_over is None
    assert all(".h." in name for name in llm.trainable_names)


def test_a_tuning_that_selects_nothing_is_refused(folders: dict[str, Path]) -> None:
    model = bare(folders["qwen2"])
    for layer in model.model.layers:
        layer.self_attn = layer.mlp = nn.Identity()
    for method in ("lora", "weights"):
        with refused("empty", "llm.tuning.targets"):
            tune(model, Tuning(method=method))  # type: ignore[arg-type]
