"""eSpeak NG, driven in process: some hundred times faster than real time, and nothing to install but a wheel.

The wheel `espeakng-loader` carries the library and its voices (GPL-3, hence an optional extra and never vendored).
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER in speak_lib.h
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the calling thread speaks; in the other modes it sleeps until one has
_CHARS_UTF8 = 1  # espeakCHARS_UTF8
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@functools.cache
def _started() -> tuple[ctypes.CDLL, int, list[NDArray[np.int16]], Any]:
    """The library, the sample rate of its voices, what it has said, and the callback, which ctypes does not keep.

    It holds its state in globals: initialised twice in a process, it hangs or crashes.
    """
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("speech synthesis needs eSpeak NG: pip install espeakng-loader (GPL-3)") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else by the time; the first is as good as any
    chunks: list[NDArray[np.int16]] = []

    def collect(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(collect)
    library.espeak_SetSynthCallback(callback)
    return library, rate_hz, chunks, callback


class ESpeak:
    """A synthesizer; all of a process are one, and sounds depend in their last digits on what it has said before.

    Raises ModuleNotFoundError where the extra is not installed.
    """

    def __init__(self) -> None:
        self._library, self._rate_hz, self._chunks, _ = _started()

    def knows(self, voice: str) -> bool:
        """Whether there is such a voice; `say` takes an unknown variant for none."""
        import espeakng_loader

        _, plus, variant = voice.partition("+")
        variants = Path(espeakng_loader.get_data_path(), "voices", "!v")
        exists = not plus or (variants / variant).is_file()
        return exists and bool(self._library.espeak_SetVoiceByName(voice.encode()) == 0)

    def say(
        self, text: str, *, voice: str, rate: int = 175, pitch: int = 50, range: int = 50
    ) -> tuple[NDArray[np.float32], int]:
        """Speak `text`: audio (samples,) in [-1, 1] and its sample rate in Hz.

        Args:
            text: what to say.
            voice: eSpeak's name, such as `en-us+f2`.
            rate: words a minute, 80-450.
            pitch: 0-99; what it means in Hz depends on the voice.
            range: how far the pitch moves, 0-99.

        Raises:
            ValueError: there is no such voice, or it said nothing.
        """
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            advice = "a voice is written language+variant, such as 'en-us+f2'"
            raise ValueError(f"eSpeak NG has no voice {voice!r}; {advice}")
        for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, 0, 0, _CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise ValueError(f"eSpeak NG said nothing for {text!r} with voice {voice!r}")
        return np.concatenate(self._chunks).astype(np.float32) / np.float32(32768), self._rate_hz
