"""BEST-RQ: self-supervised pre-training of a Conformer by masked prediction of random-projection codes."""

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sottovoce.encoders.conformer import ConformerEncoder
from sottovoce.encoders.log_mel import MELS, STACK, log_mel, stack
from sottovoce.frames import Frames

_MIN_VARIANCE = 1e-10  # a constant bin is normalised to zeros


class Masking(NamedTuple):
    """How frames are masked: spans of Llama team (2024), section 8.3, noise of Chiu et al. (2022), section 3."""

    span: int = 32  # mel frames, 320 ms
    probability: float = 0.025  # that a span begins at a mel frame; spans overlap, so that some 55 % are masked
    noise: float = 0.1  # standard deviation of the values that replace them; the mean is 0


class CodeLoss(NamedTuple):
    """Cross-entropy of a batch, summed over masked frames and codebooks."""

    total: Tensor  # nats
    hits: Tensor  # how many codes were predicted rightly
    targets: Tensor  # (masked frames, codebooks)


def seeded_generator(*key: object) -> torch.Generator:
    """A generator that is a function of its key alone: the same in every process, and after a resume."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def span_mask(frames: int, masking: Masking, generator: torch.Generator) -> Tensor:
    """Draw which mel frames of a clip are masked: (frames,), True where one is.

    Every frame begins a span with the same probability; what reaches over the end is cut off. Where that masks no whole
    stacked frame, one span is put at a random place of a clip that is long enough, so that something is predicted.
    """
    begins = (torch.rand(frames, generator=generator) < masking.probability).float()
    mask = F.max_pool1d(F.pad(begins, (masking.span - 1, 0))[None], masking.span, 1)[0].bool()
    if frames >= masking.span and not fully_masked(mask[None]).any():
        begin = int(torch.randint(frames - masking.span + 1, (), generator=generator))
        mask[begin : begin + masking.span] = True
    return mask


def fully_masked(mask: Tensor) -> Tensor:
    """(batch, mel frames) to (batch, stacked frames): True where all four mel frames are masked.

    With one of four visible, a code would be half known; such a frame is not predicted. The tail of up to three mel
    frames belongs to no stacked frame.
    """
    return mask[:, : mask.shape[1] // STACK * STACK].reshape(len(mask), -1, STACK).all(-1)


def replace_by_noise(mel: Frames, mask: Tensor, noise: float) -> Frames:
    """Log-mels (batch, mel frames, 80) with noise, from torch's global generator, where `mask` is True."""
    return Frames(torch.where(mask[..., None], noise * torch.randn_like(mel.x), mel.x), mel.lengths)


def unigram_baseline(counts: Tensor) -> tuple[float, float]:
    """Loss and accuracy of a prediction from counts (codebooks, codes) of targets alone; the mean over codebooks.

    The loss is the entropy of the codes: near 0, the codebooks have collapsed and there is nothing to learn.
    """
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    return -torch.xlogy(share, share).sum(1).mean().item(), share.max(1).values.mean().item()


class RandomQuantizer(nn.Module):
    """Frames to codes: one random projection, and in each random codebook the nearest vector by cosine.

    Chiu et al. (2022), section 3.1: Xavier projection, standard normal codebooks, both sides of length 1. Sixteen
    codebooks share the projection (Llama team, 2024, section 8.3). All is drawn from `seed`; nothing is ever trained.

    Its input has mean 0 and variance 1 (section 3.1 again): without that the projections of all speech point the same
    way, and a few codes take everything. The mean is of the corpus, bin by bin, and not of each clip: that of a clip
    is speaker and loudness, which an encoder forgets if codes do not depend on them (docs/real_speech.md).
    """

    projection: Tensor  # (dim, code_dim)
    codebooks: Tensor  # (codebooks, codes, code_dim), vectors of length 1
    mean: Tensor  # (80,), of log-mels over the corpus
    deviation: Tensor  # (80,)

    def __init__(
        self, dim: int = MELS * STACK, *, codebooks: int = 16, codes: int = 8192, code_dim: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        generator = seeded_generator("random quantizer", seed)
        bound = math.sqrt(6 / (dim + code_dim))  # Glorot and Bengio (2010), equation 16
        # on the CPU even where the rest is built on meta: the numbers are few, and are the same everywhere
        projection = (2 * torch.rand(dim, code_dim, generator=generator, device="cpu") - 1) * bound
        vectors = torch.randn(codebooks, codes, code_dim, generator=generator, device="cpu")
        self.register_buffer("projection", projection)
        self.register_buffer("codebooks", F.normalize(vectors, dim=-1))
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("deviation", torch.ones(MELS))

    def fit_normalization(self, mels: Iterable[Tensor]) -> None:
        """Set mean and standard deviation, bin by bin, from log-mels (frames, 80) of clips."""
        count, total, squares = 0, torch.zeros(MELS).double(), torch.zeros(MELS).double()
        for mel in mels:
            count += len(mel)
            total += mel.double().sum(0).cpu()
            squares += mel.double().square().sum(0).cpu()
        self.mean = (total / count).to(self.mean)
        self.deviation = (squares / count - (total / count).square()).clamp(min=_MIN_VARIANCE).sqrt().to(self.mean)

    def normalize(self, mel: Frames) -> Frames:
        """Log-mels (batch, mel frames, 80) with mean 0 and variance 1 over the corpus."""
        return Frames((mel.x - self.mean) / self.deviation, mel.lengths).zero_padding()

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """(frames, dim), normalised and stacked, to (frames, codebooks): the number of a code in each codebook."""
        with torch.autocast(frames.device.type, enabled=False):  # in bfloat16, another code is often the nearest
            projected = F.normalize(frames.float() @ self.projection, dim=-1)
            # book by book: all similarities at once are 131,072 numbers for each frame
            return torch.stack([(projected @ book.T).argmax(-1) for book in self.codebooks], dim=-1)


class BestRQ(nn.Module):
    """A Conformer, its frozen quantizer, and for each codebook a softmax over its codes, for every masked frame.

    Chiu et al. (2022), with the several softmaxes of the Llama team (2024), section 8.3. The encoder is built by its
    own `load`, before or after.
    """

    def __init__(self, encoder: ConformerEncoder, quantizer: RandomQuantizer, masking: Masking) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.masking = encoder, quantizer, masking
        books, codes, _ = quantizer.codebooks.shape
        self.heads = nn.Linear(encoder.dim, books * codes)

    def forward(self, waveform: Tensor, lengths: Tensor, mask: Tensor) -> CodeLoss:
        """The loss of clips (batch, samples) of which `mask` (batch, mel frames) is hidden from the encoder.

        Noise and dropout come from torch's global generator. A stacked frame is predicted if all of its mel frames are
        real and masked.
        """
        mel = log_mel(waveform, lengths)
        mask = mask & mel.mask()
        predicted = fully_masked(mask)
        stacked = stack(self.quantizer.normalize(mel)).x
        targets = self.quantizer(stacked[:, : predicted.shape[1]][predicted])
        states = self.encoder.contextualize(stack(replace_by_noise(mel, mask, self.masking.noise)))
        return self.code_loss(states.x[:, : predicted.shape[1]][predicted], targets)

    def code_loss(self, frames: Tensor, targets: Tensor) -> CodeLoss:
        """Cross-entropy of codes (frames, codebooks), given the encoder's outputs (frames, dim).

        Logits are computed codebook by codebook and again in the backward pass, never kept: those of one minute of
        masked speech would fill 800 MB.
        """
        books = targets.shape[1]
        weights, biases = self.heads.weight.chunk(books), self.heads.bias.chunk(books)
        total, hits = frames.new_zeros(()), targets.new_zeros(())
        for part in zip(weights, biases, targets.unbind(-1), strict=True):
            loss, right = checkpoint(_codebook_loss, frames, *part, use_reentrant=False, preserve_rng_state=False)
            total, hits = total + loss, hits + right
        return CodeLoss(total, hits, targets)


def _codebook_loss(frames: Tensor, weight: Tensor, bias: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and right predictions, both summed, of one codebook."""
    logits = F.linear(frames, weight, bias).float()
    return F.cross_entropy(logits, codes, reduction="sum"), (logits.argmax(-1) == codes).sum()
