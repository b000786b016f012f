"""BEST-RQ: targets and masks against the paper's own words in NumPy, and a loss that asks for nothing else."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sottovoce.encoders import best_rq as module
from sottovoce.encoders.best_rq import BestRQ, Masking, RandomQuantizer, fully_masked, seeded_generator, span_mask
from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import log_mel, stack
from sottovoce.frames import Frames


def noise(*seconds: float, seed: int = 0) -> Frames:
    """Clips of noise that swells, (batch, samples)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [int(16_000 * s) for s in seconds]
    return Frames.pad([torch.rand(n, generator=generator) * torch.linspace(-0.5, 0.5, n) for n in lengths])


def masks(clips: Frames) -> Tensor:
    frames = [-(-n // 160) for n in clips.lengths.tolist()]
    rows = [span_mask(n, Masking(), seeded_generator(0, i)) for i, n in enumerate(frames)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.fixture
def best_rq() -> BestRQ:
    torch.manual_seed(0)
    encoder = ConformerEncoder(layers=2, width=16, feedforward=32, heads=2, kernel=3, dropout=0.0)
    encoder.load()
    quantizer = RandomQuantizer(codebooks=3, codes=20, code_dim=4)
    quantizer.fit_normalization(log_mel(*noise(4.0, 3.0, seed=7)).rows())
    return BestRQ(encoder, quantizer, Masking())


def test_codes_are_the_nearest_vectors_as_the_paper_defines_them() -> None:
    """Argmin over i of || norm(c_i) - norm(A x) || (Chiu et al., section 3.1), for each codebook."""
    quantizer = RandomQuantizer(codebooks=3, codes=50, code_dim=16, seed=4)
    frames = torch.randn(40, 320, generator=torch.Generator().manual_seed(1))
    codes = quantizer(frames).numpy()
    a, books = quantizer.projection.double().numpy(), quantizer.codebooks.double().numpy()
    for n, x in enumerate(frames.double().numpy()):
        projected = x @ a / np.linalg.norm(x @ a)
        for k, book in enumerate(books):
            distances = [np.linalg.norm(c / np.linalg.norm(c) - projected) for c in book]
            assert codes[n, k] == int(np.argmin(distances))


def test_the_defaults_are_the_published_ones() -> None:
    quantizer = RandomQuantizer()
    assert quantizer.codebooks.shape == (16, 8192, 16) and quantizer.projection.shape == (320, 16)
    assert Masking() == (32, 0.025, 0.1)
    assert torch.allclose(quantizer.codebooks.norm(dim=-1), torch.ones(16, 8192))
    bound = math.sqrt(6 / (320 + 16))
    assert quantizer.projection.abs().max() <= bound < 1.01 * quantizer.projection.abs().max()


def test_codebooks_are_a_function_of_their_seed_and_not_of_the_moment() -> None:
    torch.manual_seed(1)
    one = RandomQuantizer(codebooks=2, codes=9, seed=3)
    torch.manual_seed(2)
    same, other = RandomQuantizer(codebooks=2, codes=9, seed=3), RandomQuantizer(codebooks=2, codes=9, seed=4)
    assert torch.equal(one.projection, same.projection) and torch.equal(one.codebooks, same.codebooks)
    assert not torch.equal(one.codebooks, other.codebooks) and not torch.equal(one.projection, other.projection)
    assert not torch.equal(one.codebooks[0], one.codebooks[1])
    assert not list(one.parameters())  # nothing that an optimizer could find


def test_the_corpus_has_mean_0_and_variance_1_in_each_bin() -> None:
    quantizer, rows = RandomQuantizer(codes=2), [3 * torch.randn(50, 80) + torch.arange(80.0), torch.randn(30, 80) - 7]
    quantizer.fit_normalization(rows)
    everything = torch.cat(rows).double().numpy()
    np.testing.assert_allclose(quantizer.mean, everything.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quantizer.deviation, everything.std(0), rtol=1e-5)
    out = torch.cat(quantizer.normalize(Frames.pad(rows)).rows())
    assert torch.allclose(out.mean(0), torch.zeros(80), atol=1e-4)
    assert torch.allclose(out.square().mean(0), torch.ones(80), atol=1e-3)
    quantizer.fit_normalization([torch.ones(4, 80)])  # nothing varies
    assert torch.equal(quantizer.normalize(Frames.pad([torch.ones(2, 80)])).x, torch.zeros(1, 2, 80))


def test_codes_spread_over_the_codebook_only_where_frames_are_normalised(best_rq: BestRQ) -> None:
    quantizer, mel = best_rq.quantizer, log_mel(*noise(8.0))
    plain, normal = (quantizer(stack(x).x[0])[:, 0].unique().numel() for x in (mel, quantizer.normalize(mel)))
    assert normal >= 10 > plain


def test_codes_hear_who_speaks(best_rq: BestRQ) -> None:
    """A clip whose treble is louder throughout has other codes; normalised by itself, it would have the same."""
    quantizer, mel = best_rq.quantizer, log_mel(*noise(4.0))
    bright = Frames(mel.x + torch.linspace(0, 2, 80), mel.lengths)
    dull, other = (quantizer(stack(quantizer.normalize(x)).x[0]) for x in (mel, bright))
    assert (dull != other).float().mean() > 0.5


def test_the_unigram_baseline_knows_frequencies_and_nothing_else() -> None:
    loss, accuracy = module.unigram_baseline(torch.tensor([[5, 5, 5, 5], [0, 12, 4, 0]]))
    assert loss == pytest.approx((math.log(4) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2)
    assert accuracy == pytest.approx((0.25 + 0.75) / 2)
    assert module.unigram_baseline(torch.tensor([[7, 0]])) == (0, 1)  # a codebook that has collapsed


def test_spans_are_those_of_the_definition() -> None:
    """A frame is hidden if one of it and the 31 before it begins a span."""
    masking, frames = Masking(), 700
    mask = span_mask(frames, masking, seeded_generator("mask", 1))
    begins = torch.rand(frames, generator=seeded_generator("mask", 1)).numpy() < 0.025
    expected = [any(begins[max(0, i - 31) : i + 1]) for i in range(frames)]
    assert mask.tolist() == expected and 0 < sum(expected) < frames


def test_as_much_is_hidden_as_chance_says() -> None:
    mask = span_mask(200_000, Masking(), seeded_generator("share"))
    assert abs(mask.float().mean().item() - (1 - 0.975**32)) < 0.01


def test_a_clip_with_room_always_has_something_to_guess() -> None:
    never = Masking(probability=1e-9)
    for frames in (32, 33, 50, 200):
        drawn = [span_mask(frames, never, seeded_generator(frames, i)) for i in range(40)]
        spans = {tuple(mask.nonzero().flatten().tolist()) for mask in drawn}
        assert all(len(span) == 32 and span[-1] - span[0] == 31 for span in spans)
        assert len(spans) == 1 if frames == 32 else len(spans) > 1
        assert all(fully_masked(mask[None]).any() for mask in drawn)
    assert not span_mask(31, never, seeded_generator(0)).any()  # no room


def test_a_stacked_frame_is_asked_for_if_all_of_it_is_hidden() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()  # the last two belong to no stacked frame
    assert fully_masked(mask).tolist() == [[False, True, True]]


def test_hidden_frames_are_quiet_noise_and_the_others_are_untouched() -> None:
    mel = Frames.pad([torch.full((4000, 80), 5.0)])
    mask = torch.zeros(1, 4000, dtype=torch.bool)
    mask[0, 1000:] = True
    heard = module.replace_by_noise(mel, mask, 0.1).x[0]
    assert torch.equal(heard[:1000], mel.x[0, :1000])
    assert abs(heard[1000:].mean()) < 0.001 and abs(heard[1000:].std() - 0.1) < 0.001


def test_padding_changes_no_target(best_rq: BestRQ) -> None:
    clips = noise(1.3, 2.9)
    together = best_rq.quantizer.normalize(log_mel(*clips))
    for row, clip in enumerate(clips.rows()):
        alone = best_rq.quantizer.normalize(log_mel(clip[None], torch.tensor([len(clip)])))
        mine, theirs = stack(alone).rows()[0], stack(together).rows()[row]
        assert torch.equal(best_rq.quantizer(mine), best_rq.quantizer(theirs))


def test_targets_are_of_what_was_said_and_not_of_what_was_left_to_hear(best_rq: BestRQ) -> None:
    """The quantizer reads the normalised frames before anything is hidden, at exactly the hidden places."""
    clips = noise(1.3, 2.9)
    mask, seen = masks(clips), []
    best_rq.quantizer.register_forward_hook(lambda _, inputs, codes: seen.append((inputs[0], codes)))
    best_rq(*clips, mask)
    stacked = stack(best_rq.quantizer.normalize(log_mel(*clips))).x
    expected = torch.cat([stacked[i][fully_masked(mask[i : i + 1])[0][: stacked.shape[1]]] for i in range(2)])
    assert torch.equal(seen[0][0], expected) and len(expected) > 0


def test_the_loss_is_the_cross_entropy_of_hidden_real_frames_alone(best_rq: BestRQ) -> None:
    """Written out with all logits at once; frames that were heard, and padding, take no part."""
    clips = noise(1.3, 2.9)
    mask = masks(clips)
    mask[0, 132:] = True  # padding that claims to be hidden
    torch.manual_seed(5)
    out = best_rq(*clips, mask)
    torch.manual_seed(5)
    mel = log_mel(*clips)
    frames = best_rq.encoder.contextualize(stack(module.replace_by_noise(mel, mask & mel.mask(), 0.1)))
    logits = best_rq.heads(frames.x).unflatten(-1, (3, 20))
    codes = best_rq.quantizer(stack(best_rq.quantizer.normalize(mel)).x.flatten(0, 1)).view(*logits.shape[:-1])
    terms, right = [], 0
    for row in range(2):
        for t in range(int(frames.lengths[row])):
            if mask[row, 4 * t : 4 * t + 4].all():
                terms += [F.cross_entropy(logits[row, t, k], codes[row, t, k]) for k in range(3)]
                right += int((logits[row, t].argmax(-1) == codes[row, t]).sum())
    assert out.targets.numel() == len(terms) > 0 and out.hits == right
    assert torch.allclose(out.total, torch.stack(terms).sum(), rtol=1e-5)


def test_only_hidden_frames_pull_at_the_encoder(best_rq: BestRQ) -> None:
    clips = noise(2.0, 1.0)
    mask, states = masks(clips), []

    def keep(layer: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        states.append(out)

    assert best_rq.encoder.network is not None
    best_rq.encoder.network.layers[-1].register_forward_hook(keep)
    best_rq(*clips, mask).total.backward()
    pulled = states[0].grad.abs().sum(-1) > 0
    asked = fully_masked(mask)
    assert torch.equal(pulled[:, : asked.shape[1]], asked) and asked.any() and not asked.all()


@pytest.mark.parametrize(("samples", "masked"), [(3_200, False), (400, True)])  # 400: no whole stacked frame
def test_a_batch_with_nothing_to_predict_reaches_every_weight(best_rq: BestRQ, samples: int, masked: bool) -> None:
    """Ranks wait for each other's gradients, so that a weight without one would hang a run."""
    out = best_rq(*noise(samples / 16_000), torch.full((1, -(-samples // 160)), masked))
    out.total.backward()
    assert out.targets.numel() == 0 and out.total == 0 and out.hits == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in best_rq.parameters())


def test_training_lowers_the_loss_and_leaves_the_codebooks_alone(best_rq: BestRQ) -> None:
    before = {name: value.clone() for name, value in best_rq.quantizer.state_dict().items()}
    assert set(before) == {"projection", "codebooks", "mean", "deviation"}
    clips = noise(1.5, 1.5, 1.2)
    mask, optimizer, losses = masks(clips), torch.optim.Adam(best_rq.parameters(), 1e-2), []
    best_rq.train()
    for _ in range(25):
        torch.manual_seed(0)
        out = best_rq(*clips, mask)
        losses.append((out.total / out.targets.numel()).item())
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    assert abs(losses[0] - math.log(20)) < 0.7 and losses[-1] < losses[0] - 0.5
    assert all(torch.equal(value, before[name]) for name, value in best_rq.quantizer.state_dict().items())
