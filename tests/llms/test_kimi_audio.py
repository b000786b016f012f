"""Kimi-Audio as encoder, projector and LLM, against a plain reading of the published forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import kimi_audio
from tests.helpers.audio_llms import batch, chat, clips, close, our_logits
from tests.helpers.kimi_audio import ID, encoder_of, ours, recipe
from tests.helpers.kimi_audio_reference import Message, Reference, heard

from sottovoce.config.recipe import parse
from sottovoce.encoders.feature_cache import FeatureCache
from sottovoce.frames import Frames
from sottovoce.lightning_modules.speech_llm import SpeechLLM
from sottovoce.llms.causal_lm import CausalLLM
from sottovoce.llms.chat_template import ChatTurn
from sottovoce.speech_token_ids import joined_ids, split_ids

SAMPLES = (23_456, 8_000, 64_000, 70_123, 1)  # the third is two whole windows, the fourth begins a third
WITHIN = 1e-4
TURNS = [chat(i % 4, clip=i) for i in range(len(SAMPLES))]
Saved = tuple[Path, Path | None]  # the model, and its speech tokenizer


@pytest.fixture(scope="module", params=["tokens", "no tokens"])
def saved(request: pytest.FixtureRequest, kimi: tuple[Path, Path]) -> Saved:
    return kimi[0], kimi[1] if request.param == "tokens" else None


def said(waves: list[torch.Tensor]) -> list[list[Message]]:
    return [heard(i % 4, wave) for i, wave in enumerate(waves)]


def test_logits_are_those_of_the_published_forward_pass(saved: Saved) -> None:
    """One at a time and in a batch of different lengths, speech before text and alone; 1e-4."""
    module, reference, waves = ours(*saved), Reference(*saved), clips(*SAMPLES)
    expected = [reference.logits(messages) for messages in said(waves)]
    together = our_logits(module, waves, TURNS)
    close(together, expected, WITHIN)
    for i, wave in enumerate(waves):
        close(our_logits(module, [wave], [chat(i % 4, clip=0)]), [expected[i]], WITHIN)
    assert max(float(row.abs().max()) for row in together) > 0.5  # or a tolerance of 1e-4 would say little


def test_discrete_tokens_matter_and_are_not_all_one(kimi: tuple[Path, Path]) -> None:
    waves = clips(*SAMPLES)
    with_tokens, without = (our_logits(ours(kimi[0], one), waves, TURNS) for one in (kimi[1], None))
    assert max(float((a - b).abs().max()) for a, b in zip(with_tokens, without, strict=True)) > 0.1
    frames = encoder_of(kimi)(*Frames.pad(waves))
    assert len(joined_ids(frames.rows()[3][:, -2:]).unique()) > 5


def test_a_dialogue_with_an_instruction_is_the_published_prompt(saved: Saved) -> None:
    """A system turn goes to the first user's; an answer ends its text; speech that ends a message asks for text."""
    module, reference, (first, second) = ours(*saved), Reference(*saved), clips(9_000, 12_000)
    question = ChatTurn("user", ("Repeat it: ", *chat(2)[0].pieces))
    turns = [ChatTurn("system", ("Be kind.",)), question, ChatTurn("assistant", ("A dog.",)), *chat(1)]
    messages = [
        {"role": "user", "text": "Be kind.\n\nRepeat it: "},
        {"role": "user", "audio": first},  # clip 2
        {"role": "assistant", "text": "A dog."},
        *heard(1, second),
    ]
    waves = [first, second, first]
    close(our_logits(module, waves, [turns]), [reference.logits(messages)], WITHIN)


def test_loss_and_answers_are_the_published_ones(saved: Saved) -> None:
    """The answer's tokens go to the text stream, with the blank beside them, and end with the end of the text."""
    module, reference, waves = ours(*saved), Reference(*saved), clips(*SAMPLES)
    expected = [reference.generate(messages, 6) for messages in said(waves)]
    assert module.generate(batch(waves), TURNS, 6) == expected
    assert len(set(expected)) > 1
    answers = ["a dog", "What 123 it's?", "y", "in the", "you"]
    responses = [module.llm.chat.response(turns, text) for turns, text in zip(TURNS, answers, strict=True)]
    with torch.no_grad():
        loss = module.llm.loss(module.embed(batch(waves), TURNS), responses)
    for messages, text, mine in zip(said(waves), answers, loss.per_row, strict=True):
        ids = [*reference.words.encode(text), ID["<|im_kimia_text_eos|>"]]
        scores = reference.logits(messages, ids)[-len(ids) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(mine, -scores[range(len(ids)), ids].sum(), atol=WITHIN, rtol=WITHIN)


def test_the_tokenizer_is_the_published_one(kimi: tuple[Path, Path]) -> None:
    llm, words = CausalLLM(str(kimi[0]), "float32"), Reference(*kimi).words
    tokenizer = llm.read_tokenizer(kimi[0])
    for text in ("What is the weather?", "It's 1,234 o'clock\n\n  there", "你好世界", "", "YOU'RE  here ", "é\t\r\nx"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == words.encode(text) and tokenizer.decode(ids) == text
    for name, number in ID.items():
        assert tokenizer.convert_tokens_to_ids(name) == number
    assert len(tokenizer) == kimi_audio.BASE + 421


def test_marks_stand_around_speech(kimi: tuple[Path, Path]) -> None:
    llm = ours(*kimi).llm
    before, _, after = llm.chat.prompt(chat(2))
    assert isinstance(before, list) and isinstance(after, list)
    assert before == [ID["<|im_kimia_user_msg_start|>"], ID["<|im_media_begin|>"]]
    ends = ("media_end", "kimia_speech_ct_id", "msg_end", "kimia_assistant_msg_start")
    assert after == [ID[f"<|im_{name}|>"] for name in ends]
    assert llm.chat.stop_ids == {ID["<|im_kimia_text_eos|>"]}


def test_frames_do_not_depend_on_the_batch_or_on_what_lies_behind(saved: Saved) -> None:
    encoder, waves = encoder_of(saved), clips(*SAMPLES)
    x, lengths = Frames.pad(waves)
    for row, length in enumerate(SAMPLES):
        x[row, length:] = 100.0
    with torch.no_grad():
        together = encoder(x, lengths)
        close(together.rows(), [encoder(*Frames.pad([wave])).rows()[0] for wave in waves])
    assert together.lengths.tolist() == [-(-n // 1_280) for n in SAMPLES]
    assert encoder.frame_rate == 12.5 and encoder.dim == 32 + 2 * (saved[1] is not None)


def test_discrete_tokens_survive_half_precision(kimi: tuple[Path, Path], tmp_path: Path) -> None:
    ids = torch.arange(16_384)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(joined_ids(split_ids(ids).to(dtype)), ids)
    encoder = encoder_of(kimi)
    (frames,) = encoder(*Frames.pad(clips(40_000))).rows()
    cache = FeatureCache(tmp_path, encoder.fingerprint())
    cache.put("clip", frames)
    assert torch.equal(cache.get("clip")[:, -2:], frames[:, -2:])
    assert encoder.fingerprint() != encoder_of((kimi[0], None)).fingerprint()


def test_a_trained_encoder_leaves_the_speech_tokenizer_as_it_is(kimi: tuple[Path, Path]) -> None:
    encoder: Any = encoder_of(kimi).train()
    encoder.requires_grad_(True)
    encoder(*Frames.pad(clips(9_000))).x.sum().backward()
    assert all(weight.grad is None for weight in encoder.encoder.tokenizer.parameters())
    assert not any(weight.requires_grad for weight in encoder.encoder.tokenizer.parameters())
    assert not encoder.encoder.tokenizer.training and encoder.encoder.whisper.conv1.weight.grad is not None


def test_layers_that_are_not_tuned_and_the_embeddings_stay_as_they_are(kimi: tuple[Path, Path]) -> None:
    llm = {"checkpoint": str(kimi[0]), "dtype": "float32", "tuning": {"method": "lora", "layers": "0-1", "rank": 4}}
    stages = {"sft": {"tasks": {"asr": 1}, "lr": 1e-2, "train": ["llm"]}}
    module = ours(*kimi, llm=llm, stages=stages)
    module.start_stage("sft", 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.trainable_parameters(), lr=1.0)
    for _ in range(2):  # the first step moves only one of LoRA's two maps
        optimizer.zero_grad()
        module.llm.loss(module.embed(batch(clips(9_000)), [chat(0)]), [[5, 6]]).total.backward()
        optimizer.step()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"llm.{name}" for name in module.llm.trainable_names}
    assert {name.split(".layers.")[1][0] for name in moved} == {"0", "1"}


def test_weights_that_were_given_are_not_overwritten(kimi: tuple[Path, Path]) -> None:
    """A bundle's weights come before `configure_model`; the table of speech tokens still comes from the checkpoint."""
    module = ours(*kimi)
    weights = {key: value + 1 for key, value in module.adapters.state_dict().items()}
    assert not [key for key in weights if "tokens" in key]
    other = SpeechLLM(parse(recipe(*kimi)))
    other.adapters.load_state_dict(weights)
    other.configure_model()
    for key, value in weights.items():
        assert torch.equal(other.adapters.state_dict()[key], value), key
    tables = [one.adapters["audio"].get_buffer("tokens") for one in (module, other)]
    assert torch.equal(*tables)
