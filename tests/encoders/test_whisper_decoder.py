"""Whisper's own decoder, of the checkpoint that the encoder came from."""

import pytest
import torch
import whisper
from tests.conftest import CONFORMER
from tests.helpers.errors import refused
from whisper.model import ModelDimensions

from sottovoce.encoders import ENCODERS
from sottovoce.encoders.whisper_decoder import whisper_decoder
from sottovoce.errors import MissingError

CONTEXT = 50  # frames in a window: one second
ENGLISH, MULTILINGUAL = 51_864, 51_865  # tokens


@pytest.fixture(scope="module", params=[ENGLISH, MULTILINGUAL])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Whisper whose vocabulary is the real one."""
    torch.manual_seed(0)
    dims = ModelDimensions(80, CONTEXT, 32, 4, 2, request.param, 12, 32, 4, 2)
    file = tmp_path_factory.mktemp("whisper") / "random.pt"
    torch.save({"dims": dims.__dict__, "model_state_dict": whisper.model.Whisper(dims).state_dict()}, file)
    return str(file)


def test_texts_are_those_of_openai_whisper(checkpoint: str) -> None:
    encoder = ENCODERS.build({"type": "whisper", "checkpoint": checkpoint})
    encoder.load()
    clips = [0.1 * torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in (9_000, 16_000, 20_000)]
    said = whisper_decoder(encoder)(clips)
    model = whisper.load_model(checkpoint, "cpu")
    language = None if model.is_multilingual else "en"
    options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=False)

    def alone(part: torch.Tensor) -> str:
        mel = whisper.log_mel_spectrogram(torch.nn.functional.pad(part, (0, 16_000 - len(part))))
        return whisper.decode(model, mel, options).text.strip()

    expected = [alone(clips[0]), alone(clips[1]), f"{alone(clips[2][:16_000])} {alone(clips[2][16_000:])}"]
    assert said == expected and len(set(said)) > 1


def test_an_encoder_without_a_decoder_says_so(tiny_whisper: str) -> None:
    small = ENCODERS.build({"type": "whisper", "checkpoint": tiny_whisper})  # whose vocabulary has a hundred tokens
    with refused("unavailable", "encoder.checkpoint", MissingError):
        whisper_decoder(small)
    demo = ENCODERS.build({"type": "whisper", "checkpoint": "sottovoce:demo/backbones/encoder.safetensors"})
    with refused("unavailable", "encoder.checkpoint", MissingError):
        whisper_decoder(demo)
    with refused("unavailable", "encoder.type", MissingError):
        whisper_decoder(ENCODERS.build(CONFORMER))
