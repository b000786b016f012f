"""CausalLLM against transformers' plain forward and greedy search, in every family; what is refused is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.errors import refused
from tests.helpers.families import FAMILIES, save_family
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import GenerationConfig

from sottovoce.errors import Code, MissingError
from sottovoce.llms import CausalLLM, ChatTurn, Placeholder
from sottovoce.llms.known_models import PUBLISHED
from sottovoce.llms.row_batches import PrefixCache
from sottovoce.llms.row_reader import Packing, RowReader

WORDS = "The speaker sounds happy and talks fast. Repeat what you hear, please."
HOW, WHAT = Placeholder("how"), Placeholder("what")
TURNS = [
    [ChatTurn("user", ("Hi",))],
    [ChatTurn("system", (WORDS,)), ChatTurn("user", ("What did ", WORDS, " say?"))],
    [ChatTurn("user", (HOW, "\n", WHAT)), ChatTurn("assistant", ("Yes?",)), ChatTurn("user", ("And ", HOW, " now?"))],
]
ANSWERS = ["It is.", "Repeat what you hear, please.", "A"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_family(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def loaded(folder: Path) -> CausalLLM:
    llm = CausalLLM(str(folder), "float32")
    llm.load()
    llm.may_pack = True
    return llm


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request: pytest.FixtureRequest, folders: dict[str, Path]) -> CausalLLM:
    return loaded(folders[request.param])


@pytest.fixture
def qwen(folders: dict[str, Path]) -> CausalLLM:
    return loaded(folders["qwen2"])


@pytest.fixture(params=["packed", "padded"])
def reading(request: pytest.FixtureRequest, llm: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as one sequence, or padded in groups of like length."""
    assert llm.packs
    if request.param == "padded":
        monkeypatch.setattr(RowReader, "packing", Packing())
        assert not llm.packs


def speech() -> dict[object, Tensor]:
    torch.manual_seed(1)
    return {"how": torch.randn(3, 32, requires_grad=True), "what": torch.randn(8, 32, requires_grad=True)}


def batch(llm: CausalLLM, filled: dict[object, Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    prompts = [llm.embed(llm.chat.prompt(turns), filled) for turns in TURNS]
    return prompts, [llm.chat.response(turns, text) for turns, text in zip(TURNS, ANSWERS, strict=True)]


def ids_of(llm: CausalLLM, turns: list[ChatTurn]) -> list[int]:
    (ids,) = llm.chat.prompt(turns)
    assert isinstance(ids, list)
    return ids


def test_an_llm_that_was_unloaded_comes_back_as_it_was(qwen: CausalLLM) -> None:
    before, fingerprint = {name: value.clone() for name, value in qwen.state_dict().items()}, qwen.fingerprint()
    qwen.unload()
    assert all(weight.is_meta for weight in qwen.parameters())
    qwen.load()
    assert all(torch.equal(value, before[name]) for name, value in qwen.state_dict().items())
    assert qwen.fingerprint() == fingerprint and not any(weight.requires_grad for weight in qwen.parameters())


@pytest.mark.parametrize("turns", TURNS[:2])
def test_text_only_prompts_give_the_loss_of_the_plain_forward(llm: CausalLLM, turns: list[ChatTurn]) -> None:
    ids, answer = ids_of(llm, turns), llm.chat.response(turns, WORDS)
    assert answer[-1] in llm.chat.stop_ids  # the end of the turn is learned, too
    whole = torch.tensor([ids + answer])
    labels = torch.tensor([[-100] * len(ids) + answer])
    with torch.no_grad():
        reference = llm.model(whole, labels=labels)
    got = llm.loss([llm.embed([ids], {})], [answer])
    assert got.tokens == len(answer)
    torch.testing.assert_close(got.total / got.tokens, reference.loss, rtol=1e-5, atol=1e-5)
    log_p = reference.logits[0].log_softmax(-1)
    by_hand = -sum(log_p[len(ids) - 1 + i, token] for i, token in enumerate(answer))
    torch.testing.assert_close(got.total, by_hand, rtol=1e-5, atol=1e-4)


def test_a_fill_stands_where_the_same_words_would(llm: CausalLLM) -> None:
    middle = llm.chat.tokenizer("sounds happy", add_special_tokens=False)["input_ids"]
    table = llm.model.get_input_embeddings()(torch.tensor(middle))
    got = llm.embed([[4, 5], HOW, [6], WHAT, HOW], {"how": table, "what": table[:0]})
    torch.testing.assert_close(got, llm.embed([[4, 5, *middle, 6, *middle]], {}), rtol=0, atol=0)
    assert llm.embed([], {}).shape == (0, 32)


@pytest.mark.usefixtures("reading")
def test_a_loss_does_not_depend_on_batch_mates(llm: CausalLLM) -> None:
    prompts, answers = batch(llm, speech())
    assert len(prompts[1]) > 2 * 16  # the sliding window of those that have one
    together = llm.loss(prompts, answers)
    alone = [llm.loss([p], [a]) for p, a in zip(prompts, answers, strict=True)]
    torch.testing.assert_close(together.per_row, torch.stack([row.total for row in alone]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(together.total, together.per_row.sum())
    assert together.tokens == sum(row.tokens for row in alone) == sum(map(len, answers))
    backwards = llm.loss(prompts[::-1], answers[::-1])
    torch.testing.assert_close(backwards.per_row.flip(0), together.per_row, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("reading")
def test_gradients_reach_the_fills_alone_and_do_not_depend_on_batch_mates(llm: CausalLLM) -> None:
    before = {name: weight.clone() for name, weight in llm.model.state_dict().items()}
    apart, together = speech(), speech()
    for prompt, answer in zip(*batch(llm, apart), strict=True):
        llm.loss([prompt], [answer]).total.backward() if prompt.requires_grad else None
    llm.loss(*batch(llm, together)).total.backward()
    for key, fill in together.items():
        assert fill.grad is not None and fill.grad.abs().max() > 1e-4
        torch.testing.assert_close(fill.grad, apart[key].grad, rtol=1e-4, atol=1e-4)
    assert all(not w.requires_grad and w.grad is None for w in llm.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in llm.model.state_dict().items())


def test_attention_is_chosen_and_means_the_same(llm: CausalLLM) -> None:
    """Through padding and a prefix that is read once, too."""
    chosen = CausalLLM(llm.checkpoint, "float32", attn_implementation="eager")
    chosen.load()
    assert chosen.model.config._attn_implementation == "eager"
    (loss, grads), (other, other_grads) = map(_loss_and_gradients, (llm, chosen))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grads, other_grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_mean_the_same_and_share_a_graph(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients alone; generation runs as it did."""
    llm = loaded(save_family(family, tmp_path, layers=4))
    graphs, compile_ = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **knobs: compile_(call, backend=graphs, **knobs))
    torch._dynamo.reset()
    compiled = loaded(Path(llm.checkpoint))
    compiled.compiles = True
    (loss, grads), (other, other_grads) = map(_loss_and_gradients, (llm, compiled))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grads, other_grads, rtol=1e-4, atol=1e-4)
    seen = graphs.frame_count
    assert 0 < seen < 4  # of four layers: those of two kinds, and batches of one row, have their own
    with torch.no_grad():
        torch.testing.assert_close(
            compiled.loss(*batch(llm, speech())).per_row, llm.loss(*batch(llm, speech())).per_row
        )
    assert graphs.frame_count == seen
    assert compiled.state_dict().keys() == llm.state_dict().keys()


def test_attention_that_an_llm_lacks_is_refused(folders: dict[str, Path]) -> None:
    with refused("mismatch", "llm.attn_implementation"):
        CausalLLM(str(folders["gemma2"]), "float32", attn_implementation="sdpa").load()


def _loss_and_gradients(llm: CausalLLM) -> tuple[Tensor, list[Tensor]]:
    filled = speech()
    losses = llm.loss(*batch(llm, filled), [ids_of(llm, TURNS[0])[:2]] * len(TURNS))
    losses.total.backward()
    return losses.per_row.detach(), [fill.grad for fill in filled.values() if fill.grad is not None]


@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_made_for_the_response_only(qwen: CausalLLM, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = qwen
    if not packed:
        monkeypatch.setattr(RowReader, "_tried", lambda _: Packing())
    prompts, answers = batch(llm, speech())
    assert llm.packs == packed
    seen: list[tuple[int, ...]] = []
    llm.model.get_output_embeddings().register_forward_hook(lambda *args: seen.append(tuple(args[2].shape)))
    llm.loss(prompts, answers)
    if packed:  # and in chunks, see frozen_head_loss
        assert seen == []
    else:  # rows of other lengths go through the model apart
        assert sum(rows for rows, _, _ in seen) == 3
        assert max(width for _, width, _ in seen) == max(map(len, answers)) + 1


def test_generation_is_that_of_hugging_face_on_ids(llm: CausalLLM) -> None:
    for turns in TURNS[:2]:
        ids = ids_of(llm, turns)
        stops = sorted(llm.chat.stop_ids)
        greedy = GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=stops, pad_token_id=0)
        whole = torch.tensor([ids])  # with its mask: BOS has the id of the pad token here, and would be taken for it
        reference = llm.model.generate(whole, attention_mask=torch.ones_like(whole), generation_config=greedy)
        expected = llm.tokenizer.decode(reference[0, len(ids) :], skip_special_tokens=True).strip()
        assert llm.generate([llm.embed([ids], {})], 40) == [expected]
        assert expected


def test_generation_does_not_depend_on_batch_mates(llm: CausalLLM) -> None:
    prompts, _ = batch(llm, speech())
    alone = [llm.generate([prompt], 24)[0] for prompt in prompts]
    assert llm.generate(prompts, 24) == alone
    assert llm.generate(prompts[::-1], 24) == alone[::-1]
    assert len(set(alone)) == len(alone)
    assert llm.generate([], 24) == []


def test_what_the_vocabulary_is_multiplied_with_is_contiguous(llm: CausalLLM) -> None:
    """Else it is multiplied row by row, on CPUs in bfloat16 with a copy of its weights for each."""
    seen: list[bool] = []

    def strides(x: torch.Tensor) -> bool:  # also where a dimension of 1 has any
        return x.stride() == torch.empty_like(x, memory_format=torch.contiguous_format).stride()

    head = llm.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, out: seen.append(strides(args[0])))
    prompts, answers = batch(llm, speech())
    llm.loss(prompts[:1], answers[:1])
    llm.generate(prompts[:1], 3)
    llm.loss(prompts, answers)
    llm.loss(prompts, answers, [ids_of(llm, TURNS[0])[:2]] * len(prompts))
    llm.generate(prompts, 3)
    assert len(seen) > 5 and all(seen)


def test_generation_stops_at_the_end_of_the_turn(llm: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    said = llm.chat.tokenizer(" happy and", add_special_tokens=False)["input_ids"]
    end = llm.chat.response(TURNS[0], "x")[-1]
    script, asked = [*said, end, *said, *said], [0]
    forward = llm.model.forward

    def scripted(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(script[asked[0]]), out.logits.shape[-1]) * 99.0
        asked[0] += 1
        return out

    monkeypatch.setattr(llm.model, "forward", scripted)
    assert llm.generate([llm.embed([ids_of(llm, TURNS[0])], {})], len(script)) == ["happy and"]
    assert asked[0] == len(said) + 1


def test_a_stop_token_that_is_not_special_is_not_said(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, plain = Path(shutil.copytree(folders["qwen2"], tmp_path / "llm")), loaded(folders["qwen2"])
    prompt = plain.embed([ids_of(plain, TURNS[0])], {})
    said = plain.model.generate(inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=9)
    assert said[0, 8] not in said[0, :8] and plain.tokenizer.decode(said[0, 8:])
    GenerationConfig(eos_token_id=int(said[0, 8])).save_pretrained(folder)
    assert loaded(folder).generate([prompt], 20) == [plain.tokenizer.decode(said[0, :8]).strip()]


def test_settings_of_the_checkpoint_do_not_leak_into_greedy_search(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "llm"))
    settings = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0, "eos_token_id": [0, 1]}
    GenerationConfig(**settings).save_pretrained(folder)
    plain, loud = loaded(folders["qwen2"]), loaded(folder)
    prompt = plain.embed([ids_of(plain, TURNS[0])], {})
    assert loud.generate([prompt], 30) == plain.generate([prompt], 30)
    assert loud.chat.stop_ids == {0, 1} and plain.chat.stop_ids == {1}


def test_loading_is_frozen_idempotent_and_keeps_its_dtype(folders: dict[str, Path]) -> None:
    llm = CausalLLM(str(folders["llama3"]))
    assert llm.dim == 32 and not list(llm.parameters())
    llm.load()
    model = llm.model
    llm.load()
    assert llm.model is model
    llm.train()
    assert llm.training and not any(module.training for module in model.modules())
    assert {weight.dtype for weight in llm.parameters()} == {torch.bfloat16}
    prompts, answers = batch(llm, speech())
    assert prompts[2].dtype == torch.bfloat16
    got = llm.loss(prompts, answers)
    assert got.per_row.dtype == torch.float32 and got.total.isfinite()


def test_a_fingerprint_knows_every_weight_and_the_template(folders: dict[str, Path], tmp_path: Path) -> None:
    original = loaded(folders["gemma"]).fingerprint()
    folder = Path(shutil.copytree(folders["gemma"], tmp_path / "llm"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "_name_or_path": "there"}))
    assert loaded(folder).fingerprint() == original  # wherever it lies, and whoever wrote it
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    changed = {original, loaded(folder).fingerprint()}
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    changed.add(loaded(folder).fingerprint())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    changed.add(loaded(folder).fingerprint())
    assert len(changed) == 4


PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "google/gemma-2-2b-it": 2_614_341_888,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen2-Audio-7B": 7_754_878_976,  # of these five, the text model
    "Qwen/Qwen2-Audio-7B-Instruct": 7_754_878_976,
    "Qwen/Qwen2.5-Omni-7B": 7_615_616_512,
    "moonshotai/Kimi-Audio-7B": 7_733_057_024,
    "moonshotai/Kimi-Audio-7B-Instruct": 7_733_057_024,
}


def no_network(*_: object, **__: object) -> None:
    raise RuntimeError("Name or service not known")  # like httpx's errors, no OSError


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_published_llms_are_built_without_weights_or_network(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.hub.snapshot_download", no_network)
    with torch.device("meta"):
        llm = CausalLLM(checkpoint)
        llm.build()
    assert sum(weight.numel() for weight in llm.parameters()) == PARAMETERS[checkpoint]
    assert {(weight.device.type, weight.dtype, weight.requires_grad) for weight in llm.parameters()} == {
        ("meta", torch.bfloat16, False)
    }
    assert llm.dim == llm.model.get_input_embeddings().embedding_dim


def test_a_local_folder_of_a_published_name_comes_first(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["qwen2"], tmp_path / "Qwen/Qwen2.5-7B-Instruct")
    monkeypatch.chdir(tmp_path)
    assert CausalLLM("Qwen/Qwen2.5-7B-Instruct").dim == 32


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Name or service not known"),
        ("Qwen/Qwen2.5-7B-Instrct", "Did you mean 'Qwen/Qwen2.5-7B-Instruct'?"),
        ("/no/such/folder", "no folder /no/such/folder"),
        ("sottovoce:demo/backbones/nothing", "backbones/nothing"),
    ],
)
def test_what_cannot_be_reached_says_what_to_do(checkpoint: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sottovoce.hub.snapshot_download", no_network)
    with refused("not-found", "llm.checkpoint", MissingError) as caught:
        CausalLLM(checkpoint).load()
    parts = (message, "cannot be loaded", "Looked in", "cache", "llm.checkpoint=/path/to/folder", "quickstart.yaml")
    assert all(part in str(caught.value) for part in parts)


def test_a_download_that_was_interrupted_is_not_taken_for_whole(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the cache holds, the index of weights says whether it is all."""
    cached = Path(shutil.copytree(folders["qwen2"], tmp_path / "cached"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (cached / "model.safetensors.index.json").write_text(json.dumps(index))
    asked: list[bool] = []

    def download(_: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append(local_files_only)
        return str(cached if local_files_only else folders["qwen2"])

    monkeypatch.setattr("sottovoce.hub.snapshot_download", download)
    CausalLLM("some/llm", "float32").load()
    assert asked == [True, True, False]  # for settings, whose files are there; and for weights


@pytest.mark.parametrize("damage", ["lost", "broken", "short", "pickled"])
def test_a_damaged_folder_is_refused(damage: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "llm"))
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    if damage == "broken":
        file.write_bytes(b"\x10\0\0\0\0\0\0\0 not safetensors")
    elif damage == "short":
        save_file({name: w for name, w in weights.items() if name != "model.norm.weight"}, file, {"format": "pt"})
    elif damage == "pickled":
        torch.save(weights, folder / "pytorch_model.bin")
    with refused("not-found", "llm.checkpoint", MissingError):
        CausalLLM(str(folder)).load()


def test_a_config_that_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen22"}')
    with refused("mismatch", "llm.checkpoint"):
        CausalLLM(str(tmp_path))
    with refused("unknown-name", "llm.dtype"):
        CausalLLM(str(tmp_path), "int8")  # type: ignore[arg-type]


def test_what_cannot_be_computed_is_refused(qwen: CausalLLM) -> None:
    row = torch.zeros(4, 32)
    with pytest.raises(KeyError, match=r"no embeddings for placeholder 'how'; there are some for \['what'\]"):
        qwen.embed([HOW], {"what": row})
    wrong: list[tuple[Code, Callable[[], object]]] = [
        ("mismatch", lambda: qwen.embed([HOW], {"how": torch.zeros(4, 31)})),
        ("mismatch", lambda: qwen.embed([HOW], {"how": torch.zeros(32)})),
        ("empty", lambda: qwen.loss([row], [[]])),
        ("empty", lambda: qwen.loss([], [])),
        ("empty", lambda: qwen.loss([row], [[3], [3]])),
        ("empty", lambda: qwen.loss([row, row[:0]], [[3], [3]])),
        ("bad-value", lambda: qwen.loss([torch.zeros(511, 32)], [[3, 4]])),  # 512 is the context's length
        ("empty", lambda: qwen.generate([row[:0]], 3)),
        ("bad-value", lambda: qwen.generate([row], 509)),
        ("bad-value", lambda: qwen.generate([row], 0)),
    ]
    for code, attempt in wrong:
        with refused(code):
            attempt()
    assert qwen.loss([torch.zeros(510, 32)], [[3, 4]]).total.isfinite()


def test_a_prefix_held_back_changes_neither_loss_nor_gradient(llm: CausalLLM) -> None:
    """Keys and values of constant text, computed once without gradient, are those of the whole forward."""
    words = ("a b " * 2, "a b " * 2, "c " * 9)
    text = [llm.chat.prompt([ChatTurn("user", (word, "x"))])[0] for word in words]
    assert all(isinstance(ids, list) for ids in text)
    speech = [torch.randn(n, llm.dim, requires_grad=True) for n in (3, 6, 4)]
    answers = [[5, 6, 7], [8], [9, 10]]
    prompts = [torch.cat([llm.embed([ids], {}), fill]) for ids, fill in zip(text, speech, strict=True)]
    whole = llm.loss(prompts, answers)
    wanted = torch.autograd.grad(whole.total, speech)
    prompts = [torch.cat([llm.embed([ids], {}), fill]) for ids, fill in zip(text, speech, strict=True)]
    held = llm.loss(prompts, answers, [list(ids) for ids in text])  # type: ignore[arg-type]
    torch.testing.assert_close(held.per_row, whole.per_row, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(held.total, speech), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_prefix_is_read_once(qwen: CausalLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time, alone or with others, it comes from memory, to the bit; and memory has a limit."""
    model, read = qwen.model, []
    forward = model.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        read.extend(named.get("input_ids", torch.empty(0)).tolist())
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", counted)
    memory = PrefixCache(max_tokens=9)
    (first, _), (both, real) = memory.batch(model, [[5, 6]]), memory.batch(model, [[5, 6], [7, 8, 9], [7, 8, 9]])
    assert read == [[5, 6], [7, 8, 9]]
    assert real.tolist() == [[False, True, True], [True] * 3, [True] * 3]
    for one, three in zip(first.layers, both.layers, strict=True):
        assert torch.equal(one.keys[0], three.keys[0, :, 1:]) and torch.equal(one.values[0], three.values[0, :, 1:])
        assert torch.equal(three.keys[1], three.keys[2]) and not three.keys[0, :, 0].any()
    memory.batch(model, [[1] * 5])
    memory.batch(model, [[7, 8, 9]])
    memory.batch(model, [[5, 6]])
    assert read[2:] == [[1] * 5, [5, 6]]  # 5, 6 was the oldest and had to go


def test_a_prefix_is_really_used(llm: CausalLLM) -> None:
    """Another prefix than the prompt's own gives another loss, where the model attends to all."""
    ids = llm.chat.prompt([ChatTurn("user", ("a b c",))])[0]
    assert isinstance(ids, list)
    prompt = torch.cat([llm.embed([ids], {}), torch.randn(3, llm.dim)])
    right, wrong = (llm.loss([prompt], [[5, 6]], [prefix]).total for prefix in (ids, ids[::-1]))
    assert torch.isclose(right, wrong) != llm.attends_to_all
