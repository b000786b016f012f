"""Opening of audio files: which streams they join, whether they break off, and how much they claim to hold."""

import mmap
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile

from sottovoce.data.audio_framing import (
    flac_claims,
    flac_samples,
    frame_bytes,
    mp3_streams,
    ogg_streams,
    past_tags,
    wav_data,
)
from sottovoce.data.av_decoder import CONVERT, UNKNOWN_FRAMES, is_known, open_av
from sottovoce.data.clip_reference import file_of, read_bytes, tar_member
from sottovoce.errors import AudioError

_HEAD = 1 << 12  # bytes
_FLAC_TAIL = 1 << 17  # bytes, more than a frame
_CUT_SHORT = re.compile(  # in libsndfile's log, of WAV, AIFF, AU, SVX, W64 and RF64
    r"^\s*(?:data|SSND|Data Size|BODY|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_STREAMED = 0x7FFF0000  # bytes; writers to a pipe claim about 2 or 4 GiB, for want of the true size
_CLAIMED = {  # samples that the header claims, where libsndfile counts those that are there: in its log, or the header
    "AVR": r"^\s*Frames\s*: (\d+)", "MPC2K": r"^\s*Frames\s*: (\d+)", "SDS": r"^\s*Frames\s*: (\d+)",
    "MAT5": r"Cols : (\d+)", "NIST": r"^sample_count -i (\d+)",
}  # fmt: skip
_BEGINNINGS = {  # of formats of which libsndfile reads the first of two joined files alone, or a header as samples
    b".snd": rb"\.snd\0\0\0[\x18-\xff].{4}\0\0\0[\x01-\x1b]", b"caff": rb"caff\0\x01\0\0desc",
    b"riff": rb"riff\x2e\x91\xcf\x11\xa5\xd6", b"RF64": rb"RF64\xff{4}WAVEds64", b"PVF1": rb"PVF1\n\d+ \d+ \d+\n",
    b"Crea": rb"Creative Voice File\x1a", b" paf": rb" paf\0{4}", b"fap ": rb"fap \0{4}",
}  # fmt: skip
_SAME_BEGINNING = (b"\x64\xa3", b"\0\0\0\0\x01\0\0\0", b"\0\0\x03\xe8")  # IRCAM, MAT4: no mark, but the same header


def open_streams(path: Path, stack: ExitStack) -> tuple[list[Any], int, bool]:
    """Open a recording: its streams, mostly one; the samples that their headers claim, 0 for none; whether that is so.

    Raises:
        AudioError: it is not there, breaks off, or joins what cannot be read as one.
        soundfile.SoundFileError, OSError, TypeError, ValueError: libsndfile cannot open it.
    """
    source = _Source(path)
    known = True
    opened: Sequence[BytesIO | Path]
    try:
        if form := source.framing:
            opened, known = _of_streams(source.data, form)
        elif lying := _claims_little(source):
            opened, known = [lying], False
        else:
            _refuse_joined(source.second())
            opened = [BytesIO(source.data) if source.member else source.file]
        files = [stack.enter_context(soundfile.SoundFile(each)) for each in opened]
    except soundfile.SoundFileError:
        if not is_known(source.head):
            raise
        files = [stack.enter_context(open_av(source.data, source.file))]
    if len({(file.samplerate, file.channels) for file in files}) > 1:
        told = f"its joined streams differ in sample rate or channels: {CONVERT.format(source.file.name)}"
        raise AudioError(told, code="bad-value")
    _refuse_cut(files[0], source.head)
    for file in files:
        # soundfile seeks after each read, at which an MP3 loses what its frames borrow from each other, and reads no
        # further than the header says; not so with a file that cannot seek
        file.seekable = lambda: False
    known &= all(file.frames < UNKNOWN_FRAMES >> 1 for file in files)
    return files, sum(file.frames for file in files) if known else flac_claims(source.head), known


class _Source:
    """The bytes of a recording, of a file or in an archive, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.member = path, file_of(path), tar_member(path)
        if not self.member and not self.file.is_file():
            raise AudioError("there is no such file", code="not-found")
        if not self.member and self.file.stat().st_size == 0:
            raise AudioError("the file is empty (0 bytes)", code="damaged")
        self.head = self.peek(0, _HEAD)

    @cached_property
    def data(self) -> bytes:
        return read_bytes(self.path)

    def peek(self, at: int, count: int) -> bytes:
        """Some of them; `at` is from their end where it is negative."""
        if self.member:
            return self.data[at:][:count]
        with self.file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size + at) if at < 0 else at)
            return stream.read(count)

    def second(self) -> int:
        """The byte at which another file of its format begins, of formats in `_BEGINNINGS`; 0 where none does."""
        pattern = _BEGINNINGS.get(self.head[:4])
        if self.head.startswith(_SAME_BEGINNING):
            pattern = re.escape(self.head[:32])
        if pattern is None:
            return 0
        whole = re.compile(pattern, re.DOTALL)
        if self.member:
            found = whole.search(self.data, 1)
            return found.start() if found else 0
        with self.file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = whole.search(content, 1)
            return found.start() if found else 0

    @property
    def framing(self) -> str | None:
        """`ogg` or `mp3`, of which libsndfile does not see whether it breaks off, or is joined to another one."""
        if self.head[:4] == b"OggS":
            return "ogg"
        return "mp3" if frame_bytes(self.peek(past_tags(self.head, 0), 4), 0) else None


def _of_streams(data: bytes, form: str) -> tuple[list[BytesIO], bool]:
    """Each stream of an Ogg or MP3 file, and whether all say how long they are; AudioError where one breaks off."""
    streams = mp3_streams(data) if form == "mp3" else ogg_streams(data)
    if not all(stream.whole for stream in streams):
        missing = "a frame of MPEG audio" if form == "mp3" else "a page of Ogg"
        raise AudioError(f"damaged: it breaks off: {missing} or more is missing", code="damaged")
    parts = [(data[stream.start : stream.stop], stream.length_known) for stream in streams]
    return [BytesIO(part) if known else _LongerBytes(part) for part, known in parts], all(known for _, known in parts)


def _claims_little(source: _Source) -> BytesIO | None:
    """A FLAC or WAV whose header claims too few samples, or the FLAC too many, as one that claims none.

    Raises:
        AudioError: another file is joined to it, or the WAV has much behind its samples that is no chunk.
    """
    head = source.head
    if head[:4] == b"fLaC" and (claimed := flac_claims(head)):
        if flac_samples(head, source.peek(-_FLAC_TAIL, _FLAC_TAIL)) == claimed:
            return None
        data = source.data
        _refuse_joined(data.find(b"fLaC\0\0\0\x22", 42))
        return BytesIO(data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:])
    at, size = wav_data(head)
    end = at + size + size % 2
    behind = source.peek(end, 1 << 14) if at else b""
    if behind[:4] == b"RIFF":
        _refuse_joined(end)
    if not size and behind:  # whoever wrote it had no time to write the length
        data = source.data
        return BytesIO(data[: at - 4] + b"\xff\xff\xff\xff" + data[at:])
    if len(behind) == 1 << 14 and not behind[:4].isascii():
        way = f"ffmpeg -ignore_length 1 -i {source.file.name} out.wav"
        raise AudioError(f"damaged: there are more samples than its header claims; to read all: {way}", code="damaged")
    return None


def _refuse_joined(at: int) -> None:
    """Raises AudioError where a second file begins at some byte, not the first: libsndfile reads none but the first."""
    if at > 0:
        raise AudioError(f"two files in one: the second begins at byte {at}; cut them apart", code="bad-value")


def _refuse_cut(file: Any, head: bytes) -> None:
    """Raises AudioError where libsndfile has read a file that breaks off as if it were whole, but for its log."""
    log = file.extra_info if file.format != "NIST" else head[:1024].decode("latin1")
    if (cut := _CUT_SHORT.search(log)) and int(cut[2]) < int(cut[1]) < _STREAMED:
        problem = f"damaged: its header claims {cut[1]} bytes of samples, {cut[2]} are there"
        raise AudioError(problem, code="damaged")
    claims = re.findall(_CLAIMED[file.format], log, re.MULTILINE) if file.format in _CLAIMED else []
    if (claims and int(claims[-1]) != file.frames) or (file.format in ("MAT4", "VOC") and "truncated" in log):
        raise AudioError("damaged: it breaks off before the length that its header claims", code="damaged")


class _LongerBytes(BytesIO):
    """Bytes that seem to be 64 times as many, with zeros behind the last one, for a decoder that guesses.

    Of an MP3 without a tag, libmpg123 guesses the length from the file's size and the first frame's bit rate, and
    libsndfile reads no further. Bit rates go from 8 to 320 kbit/s; reading still ends at the true end.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.true, self.seeming = len(data), 64 * len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(self.seeming + offset) if whence == os.SEEK_END else super().seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        if self.tell() <= self.true:
            return super().readinto(buffer)
        buffer[:] = bytes(len(buffer))
        return len(buffer)
