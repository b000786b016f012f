"""Checkpoints that would be another LLM than the one that was named, or none that can answer speech: told at load."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.helpers.errors import refused
from tests.helpers.families import save_family, tokenizer_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sottovoce.errors import ConfigError, TrainingError
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.llms.engines import LocalEngine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_family("qwen2", tmp_path / "llm")


def test_a_lora_beside_the_weights_is_refused_with_the_way_to_merge_it(folder: Path, tmp_path: Path) -> None:
    bare = folder.with_name("bare")
    shutil.copytree(folder, bare)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(folder)
    with refused("conflict", "llm.checkpoint", ConfigError) as caught:
        CausalLLM(str(folder), "float32")
    assert "merge_and_unload" in str(caught.value)
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in folder.glob("adapter_*"):
        shutil.copy(file, alone)
    with refused("conflict", "llm.checkpoint") as caught:
        CausalLLM(str(alone), "float32")
    assert "a LoRA of" in str(caught.value)
    CausalLLM(str(bare), "float32").load()


@pytest.mark.parametrize("name", ["model.gguf", "models-GGUF/model-q4.gguf"])
def test_a_gguf_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"GGUF")
    for checkpoint in (file, file.parent):
        with refused("mismatch", "llm.checkpoint", ConfigError) as caught:
            CausalLLM(str(checkpoint))
        assert "GGUF" in str(caught.value)


@pytest.mark.parametrize("method", [{"quant_method": "awq", "bits": 4}, {"quant_method": "gptq", "bits": 4}])
def test_a_quantised_checkpoint_whose_package_is_absent(method: dict[str, Any], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    with refused("unavailable", "llm.checkpoint", ConfigError) as caught:
        CausalLLM(str(folder), "float32").load()
    assert "\n" not in str(caught.value)


def saved(folder: Path, model_type: str, **options: Any) -> Path:
    tokenizer = tokenizer_of("qwen2")
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
        **options,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_llm_that_generates_from_token_ids_alone(tmp_path: Path) -> None:
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]}
    llm = CausalLLM(str(saved(tmp_path, "bamba", **sizes)), "float32")
    with refused("mismatch", "llm.checkpoint", ConfigError):
        llm.load()
    with refused("mismatch", "llm.checkpoint", ConfigError), torch.device("meta"):  # a dry run
        llm.build()


def test_an_llm_with_embeddings_for_every_layer(tmp_path: Path) -> None:
    """Gemma 3n and 4: speech has no token to look them up by, and transformers then takes zeros, or fails."""
    sizes = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320}
    layers = {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]}
    with refused("mismatch", "llm.checkpoint", ConfigError):
        CausalLLM(str(saved(tmp_path, "gemma4_text", **sizes, **layers)), "float32")


def test_a_template_with_tokens_that_the_weights_lack(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.save_pretrained(folder)  # a token that nothing writes, as many checkpoints have
    CausalLLM(str(folder), "float32").load()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    tokenizer.save_pretrained(folder)
    with refused("mismatch", "llm.checkpoint", ConfigError) as caught:
        CausalLLM(str(folder), "float32").load()
    assert "<|turn|>" in str(caught.value)


@pytest.mark.parametrize(("dtype", "overflows"), [("float16", True), ("bfloat16", False)])
def test_logits_that_are_not_finite_are_no_answer(dtype: Any, overflows: bool, folder: Path) -> None:
    """Greedy search would take token 0 again and again, which is "!" in Qwen's vocabulary."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 100
    weights["model.layers.0.mlp.up_proj.weight"] *= 1000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    llm = CausalLLM(str(folder), dtype)
    llm.load()
    prompt = llm.embed(llm.chat.prompt([ChatTurn("user", ("hi",))]), {})
    engine = LocalEngine(checkpoint=str(folder), dtype=dtype, device="cpu")
    for ask in (
        lambda: llm.generate([prompt], 4),
        lambda: engine.answer([[{"role": "user", "content": "hi"}]], max_new_tokens=4, temperature=1.0),
    ):
        if overflows:
            with refused("nonfinite", "llm.dtype", TrainingError):
                ask()
    if not overflows:
        assert llm.generate([prompt], 4)


def test_arguments_of_the_template_tell_llms_apart(folder: Path) -> None:
    """Whoever thinks answers otherwise: caches and bundles must not take one for the other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = CausalLLM(str(folder), "float32")
    before.load()
    tokenizer.chat_template += "{% if enable_thinking %}{% endif %}"
    tokenizer.save_pretrained(folder)
    prints = {before.fingerprint()}
    for arguments in (None, {"enable_thinking": True}, {"enable_thinking": False}):
        llm = CausalLLM(str(folder), "float32", chat_template_kwargs=arguments)
        llm.load()
        prints.add(llm.fingerprint())
    assert len(prints) == 3  # false is the default
