"""TLTR against its published form in Whisper's own blocks; the recogniser learns, is kept, and knows its encoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tests.helpers.errors import refused
from torch import Tensor, nn
from whisper.model import ResidualAttentionBlock

from sottovoce.encoders import emotion_classifier
from sottovoce.encoders.emotion_classifier import EmotionClassifier, LabelledClips, balanced_accuracy
from sottovoce.encoders.tltr import TLTR, mean_pool
from sottovoce.errors import BundleError, MissingError
from sottovoce.frames import Frames

DIM, LAYERS, CLASSES, POOL = 16, 3, 4, 5
LENGTHS = (23, 40, 5, 1)
HERE, ELSEWHERE = "0123456789abcdef" * 4, "fedcba9876543210" * 4
LABELS = ("angry", "happy", "sad")


def build(**knobs: Any) -> TLTR:
    """A small one whose every weight, norms and biases included, is far from 0 and 1."""
    torch.manual_seed(0)
    tltr = TLTR(DIM, LAYERS, CLASSES, pool=POOL, **knobs).eval()
    for value in tltr.parameters():
        nn.init.normal_(value, 0.1, 0.3)
    return tltr


def states_of(lengths: tuple[int, ...], count: int = LAYERS, seed: int = 1) -> list[Frames]:
    generator = torch.Generator().manual_seed(seed)
    draw = [[torch.randn(n, DIM, generator=generator) for n in lengths] for _ in range(count)]
    return [Frames.pad(rows) for rows in draw]


def whispers(block: Any, heads: int) -> ResidualAttentionBlock:
    """Whisper's block with the weights of ours. Its keys have no bias, which no softmax over keys could tell anyway."""
    width = block.linear1.in_features
    query, key, value = block.self_attn.in_proj_weight.chunk(3)
    query_bias, _, value_bias = block.self_attn.in_proj_bias.chunk(3)
    named = {
        "attn.query.weight": query, "attn.query.bias": query_bias, "attn.key.weight": key,
        "attn.value.weight": value, "attn.value.bias": value_bias,
    }  # fmt: skip
    for theirs, ours in (("attn.out", "self_attn.out_proj"), ("attn_ln", "norm1"), ("mlp_ln", "norm2"),
                         ("mlp.0", "linear1"), ("mlp.2", "linear2")):  # fmt: skip
        part = block.get_submodule(ours)
        named |= {f"{theirs}.weight": part.weight, f"{theirs}.bias": part.bias}
    theirs_block = ResidualAttentionBlock(width, heads)
    theirs_block.load_state_dict(named)
    return theirs_block


def published(tltr: Any, clip: Tensor, time_heads: int, layer_heads: int) -> Tensor:
    """Gong et al. (2023), TL-TR, for the states of one clip, (layers, frames, dim), whose steps are all whole."""
    over_time, over_layers = whispers(tltr.over_time, time_heads), whispers(tltr.over_layers, layer_heads)
    steps = F.avg_pool1d(clip.transpose(1, 2), POOL).transpose(1, 2)  # (layers, steps, dim)
    if tltr.dims["width"]:
        norm, linear = tltr.narrow
        steps = linear(F.layer_norm(steps, (DIM,), norm.weight, norm.bias))
    each = torch.stack([over_time(layer[None])[0].mean(0) for layer in steps])  # (layers, width)
    vector = over_layers(each[None])[0].mean(0)
    norm, linear = tltr.head
    logits: Tensor = F.layer_norm(vector, vector.shape, norm.weight, norm.bias) @ linear.weight.T + linear.bias
    return logits


@pytest.mark.parametrize("knobs", [{}, {"width": 8}, {"time_heads": 2, "layer_heads": 4}])
@pytest.mark.parametrize("gradients", [False, True], ids=["fast path", "slow path"])
def test_it_is_the_published_form(knobs: dict[str, int], gradients: bool) -> None:
    tltr, states = build(**knobs), states_of((20, 35))
    with torch.set_grad_enabled(gradients):
        logits = tltr(states)
    for row, length in enumerate((20, 35)):
        clip = torch.stack([x[row, :length] for x, _ in states])
        expected = published(tltr, clip, knobs.get("time_heads", 1), knobs.get("layer_heads", 8))
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 0.01  # it tells clips apart at all


def test_the_published_numbers_are_the_defaults() -> None:
    """Whisper-AT's lw_tr_1_8: pooled by 20, 1 head over time, 8 over layers, at the encoder's width."""
    with torch.device("meta"):
        full, narrow = TLTR(1280, 32, 527), TLTR(1280, 32, 527, width=512)
    assert (full.dims["pool"], full.dims["time_heads"], full.dims["layer_heads"]) == (20, 1, 8)
    for tltr, width in ((full, 1280), (narrow, 512)):
        block = 12 * width**2 + 13 * width  # four maps of attention, two of the feed-forward, two norms
        down = 2 * 1280 + 1280 * 512 + 512 if width == 512 else 0
        head = 2 * width + width * 527 + 527
        assert sum(p.numel() for p in tltr.parameters()) == down + 2 * block + head


@pytest.mark.parametrize("knobs", [{}, {"width": 8, "time_heads": 4}])
@pytest.mark.parametrize("gradients", [False, True], ids=["fast path", "slow path"])
def test_padding_never_changes_a_clips_logits(knobs: dict[str, int], gradients: bool) -> None:
    tltr, states = build(**knobs), states_of(LENGTHS)
    wide = [F.pad(x, (0, 0, 0, 2 * POOL + 1)) for x, _ in states]
    lengths = states[0].lengths
    for x in wide:
        x[~Frames(x, lengths).mask()] = float("nan")  # what lies behind a clip is nobody's business
    with torch.set_grad_enabled(gradients):
        together = tltr([Frames(x, lengths) for x in wide])
        for row, length in enumerate(LENGTHS):
            alone = tltr([Frames(x[row : row + 1, :length], lengths[row : row + 1]) for x, _ in states])
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_a_step_is_the_mean_of_its_real_frames() -> None:
    frames = states_of(LENGTHS)[0]
    frames.x[~frames.mask()] = float("nan")
    pooled = mean_pool(frames, POOL)
    assert pooled.lengths.tolist() == [5, 8, 1, 1]
    for row, clip in zip(pooled.rows(), frames.rows(), strict=True):
        expected = torch.stack([part.mean(0) for part in clip.split(POOL)])
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-6)


def test_the_first_layers_input_is_left_out() -> None:
    tltr, states = build(), states_of(LENGTHS, LAYERS + 1)
    assert torch.equal(tltr(states), tltr(states[1:]))
    assert not torch.allclose(tltr(states), tltr(states[:-1]))


def test_kept_clips_give_the_same_logits() -> None:
    tltr, states = build(), states_of(LENGTHS)
    kept = tltr.pooled(states)
    assert kept.x.shape == (4, 8, LAYERS, DIM)
    torch.testing.assert_close(tltr.classify(Frames.pad(kept.rows())), tltr(states))


def test_gradients_reach_every_weight() -> None:
    tltr = build(width=8).train()
    F.cross_entropy(tltr(states_of(LENGTHS)), torch.tensor([0, 1, 2, 3])).backward()
    for name, value in tltr.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "states",
    [
        [], states_of(LENGTHS, LAYERS - 1), states_of(LENGTHS, LAYERS + 2),
        [Frames(x[..., :-1], lengths) for x, lengths in states_of(LENGTHS)],
    ],
)  # fmt: skip
def test_another_number_of_layers_and_another_dim_are_refused(states: list[Frames]) -> None:
    with pytest.raises(ValueError, match=r"expected the states of 3 layers, each \(batch, frames, 16\)"):
        build()(states)


@pytest.mark.parametrize("knobs", [{"pool": 0}, {"width": 0}, {"time_heads": 3}, {"layer_heads": 8, "width": 12}])
def test_a_bad_number_is_named(knobs: dict[str, int]) -> None:
    """The width is 16, which 3 heads cannot share."""
    with refused("bad-value", f"TLTR.{next(iter(knobs))}"):
        TLTR(DIM, LAYERS, CLASSES, **knobs)


def untrained(labels: tuple[str, ...] = LABELS) -> EmotionClassifier:
    torch.manual_seed(3)
    return EmotionClassifier(TLTR(DIM, LAYERS, len(labels), pool=POOL), labels, HERE)


def emotional_states(tltr: TLTR, count: int, seed: int) -> tuple[list[Frames], list[str]]:
    """Noise of uneven lengths, in whose middle layer one direction out of three is stronger."""
    generator = torch.Generator().manual_seed(seed)
    lengths = tuple(torch.randint(8, 40, (count,), generator=generator).tolist())
    states, labels = states_of(lengths, seed=seed), [LABELS[i % 3] for i in range(count)]
    for row, label in enumerate(labels):
        states[1].x[row, :, LABELS.index(label)] += 2
    return states, labels


def emotional(ser: EmotionClassifier, count: int, seed: int) -> LabelledClips:
    states, labels = emotional_states(ser.tltr, count, seed)
    return LabelledClips([row.half() for row in ser.tltr.pooled(states).rows()], labels)


def test_it_learns_what_can_be_heard() -> None:
    ser = untrained()
    train, validation = emotional(ser, 60, seed=1), emotional(ser, 30, seed=2)
    scores = emotion_classifier.train_emotion_classifier(
        ser, train, validation, epochs=8, batch_size=10, learning_rate=3e-3
    )
    assert len(scores) <= 8 and max(scores) > 0.9
    states, labels = emotional_states(ser.tltr, 30, seed=4)  # of nobody it has met
    assert sum(found == true for found, true in zip(ser.predict(states), labels, strict=True)) > 25


def test_training_is_a_function_of_its_seed() -> None:
    runs = []
    for seed in (0, 0, 1):
        ser = untrained()
        emotion_classifier.train_emotion_classifier(
            ser, emotional(ser, 12, 1), emotional(ser, 6, 2), epochs=2, batch_size=4, seed=seed
        )
        runs.append(torch.cat([value.flatten() for value in ser.tltr.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_it_stops_early_and_keeps_its_best_epoch() -> None:
    ser = untrained()
    train, validation = emotional(ser, 30, seed=1), emotional(ser, 30, seed=2)
    wrong = LabelledClips(train.clips, [LABELS[LABELS.index(label) - 1] for label in train.labels])
    emotion_classifier.train_emotion_classifier(ser, train, validation, epochs=6, batch_size=10, learning_rate=3e-3)
    scores = emotion_classifier.train_emotion_classifier(
        ser, wrong, validation, epochs=40, batch_size=10, learning_rate=1e-3, patience=2
    )
    best = scores.index(max(scores))
    assert len(scores) == best + 1 + 2 < 40 and scores[-1] < scores[best]
    with torch.no_grad():
        again = ser.tltr.classify(Frames.pad([clip.float() for clip in validation.clips])).argmax(-1)
    truth = torch.tensor([ser.labels.index(label) for label in validation.labels])
    assert balanced_accuracy(again, truth) == scores[best] and not ser.tltr.training


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 1, 1])
    assert balanced_accuracy(predicted, truth) == (3 / 4 + 0) / 2


def test_it_survives_its_file(tmp_path: Path) -> None:
    ser, states = untrained(), states_of(LENGTHS)
    file = tmp_path / "runs" / "ser.safetensors"
    ser.save(file)
    ser.save(file)  # replaces what is there
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    torch.manual_seed(11)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    other = EmotionClassifier.load(file, HERE)
    assert torch.equal(torch.rand(1), drawn)  # loading leaves torch's generator alone
    assert other.labels == LABELS and other.tltr.dims == ser.tltr.dims
    with torch.no_grad():
        assert torch.equal(other.tltr(states), ser.tltr.eval()(states))
    assert other.predict(states) == ser.predict(states)
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    assert metadata["encoder"] == HERE and json.loads(metadata["labels"]) == list(LABELS)
    assert json.loads(metadata["dims"])["pool"] == POOL


def test_a_file_that_is_another_encoders_or_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ser.safetensors"
    with refused("not-found", file, MissingError):
        EmotionClassifier.load(file, HERE)
    untrained().save(file)
    with refused("mismatch", file, BundleError):
        EmotionClassifier.load(file, ELSEWHERE)
    file.write_bytes(file.read_bytes()[:-8])
    with refused("damaged", file, BundleError):
        EmotionClassifier.load(file, HERE)


@pytest.mark.parametrize("labels", [("angry", "happy"), ("angry", "happy", "happy")])
def test_labels_must_be_the_classes(labels: tuple[str, ...]) -> None:
    with refused("bad-value", "labels"):
        EmotionClassifier(TLTR(DIM, LAYERS, 3), labels, HERE)


@pytest.mark.parametrize(
    ("train", "validation", "code", "where"),
    [
        (["angry", "hapy"], ["angry", "sad"], "unknown-name", "train"),
        (["angry"], ["angry", "sad"], "bad-value", "train"),
        (["angry", "sad"], [], "bad-value", "validation"),
    ],
)
def test_what_cannot_be_learnt_is_named(train: list[str], validation: list[str], code: Any, where: str) -> None:
    ser = untrained()
    clips = list(emotional(ser, 2, 1).clips)
    with refused(code, where):
        emotion_classifier.train_emotion_classifier(
            ser, LabelledClips(clips, train), LabelledClips(clips[: len(validation)], validation)
        )
