"""Files of formats that libsndfile does not write, made with PyAV."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray


class Recipe(NamedTuple):
    """How PyAV makes a format."""

    muxer: str
    codec: str
    rate: int = 16000  # Hz
    options: dict[str, str] = {}
    bit_rate: int | None = None


AV_FORMATS = {
    "m4a": Recipe("mp4", "aac"),
    "m4a, index first": Recipe("mp4", "aac", options={"movflags": "faststart"}),
    "mp4 in fragments": Recipe("mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"}),
    "alac": Recipe("ipod", "alac"),
    "webm": Recipe("webm", "libopus", 48000),
    "webm of a browser": Recipe("webm", "libopus", 48000, {"live": "1"}),
    "wma": Recipe("asf", "wmav2", bit_rate=32000),
    "aac": Recipe("adts", "aac"),
    "amr": Recipe("amr", "libopencore_amrnb", 8000, bit_rate=12200),
    "wavpack": Recipe("wv", "wavpack"),
    "wav of G.722": Recipe("wav", "g722"),
}


def write_av(path: Path, recipe: Recipe, samples: NDArray[np.float32], rate: int) -> None:
    """Encode (samples,) or (samples, channels) of some rate, at the rate of the format."""
    layout = "mono" if samples.ndim == 1 else "stereo"
    with av.open(str(path), "w", format=recipe.muxer, container_options=recipe.options) as container:
        stream = cast(Any, container.add_stream(recipe.codec, rate=recipe.rate, layout=layout))
        if recipe.bit_rate:
            stream.bit_rate = recipe.bit_rate
        planes = np.ascontiguousarray(samples.astype(np.float32).reshape(len(samples), -1).T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
