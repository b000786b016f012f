"""Framing of Ogg, MP3 and FLAC, which libsndfile does not check: streams joined in one file, and where they break off.

Formats: RFC 3533 (Ogg), ISO/IEC 11172-3 and 13818-3 with the tags of Xing, LAME and Fraunhofer (MPEG audio), RFC 9639
(FLAC).
"""

import re
from typing import NamedTuple

_KBPS = {  # by whether the version is 1, and the layer
    (True, 1): range(0, 480, 32), (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
_HZ = (44100, 48000, 32000)
_LENGTH_TAG = re.compile(rb"(?:Xing|Info)\0\0\0([\0-\xff])([\0-\xff]{4})|VBRI[\0-\xff]{10}([\0-\xff]{4})")
_ZEROS = re.compile(rb"\0+")
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9]")


class Stream(NamedTuple):
    """One of the streams that a file joins."""

    start: int  # bytes
    stop: int  # bytes
    whole: bool  # False: it breaks off
    length_known: bool = True  # whether a decoder can know it in advance


def ogg_streams(data: bytes) -> list[Stream]:
    """The links of a chained Ogg file; whole where no page is missing and each logical stream has its last page."""
    links, start, content, lost = [], 0, False, False
    pages: dict[bytes, int] = {}  # of logical streams without their last page: number of the next one, by serial
    at = data.find(b"OggS\0")
    while at >= 0 and len(data) >= at + 27:
        flags, serial, number = data[at + 5], data[at + 14 : at + 18], int.from_bytes(data[at + 18 : at + 22], "little")
        first, last = flags & 2, flags & 4
        if first and content:
            links.append(Stream(start, at, not (pages or lost)))
            start, content, lost, pages = at, False, False, {}
        content |= not first
        lost |= not first and pages.get(serial) != number
        pages[serial] = number + 1
        body = at + 27 + data[at + 26]
        end = body + sum(data[at + 27 : body])
        at = data.find(b"OggS\0", body)
        if end <= (len(data) if at < 0 else at):
            pages.pop(serial) if last else None
        else:
            lost = True  # within this page
    return [*links, Stream(start, len(data), not (pages or lost))]


def mp3_streams(data: bytes) -> list[Stream]:
    """The MPEG audio streams of a file: a frame with a Xing, Info or VBRI tag begins one, and says of how many frames.

    Where no frames are found (a free bit rate), one stream of unknown length.
    """
    streams: list[Stream] = []
    at, claimed, count, start, lost = _next_frame(data, 0), None, 0, 0, False
    while at + 4 <= len(data):
        if not (size := frame_bytes(data, at)):
            at, junk = _next_frame(data, at), not frame_bytes(data, past_tags(data, at))
            lost |= junk and at < len(data)
            continue
        tag = _LENGTH_TAG.search(data, at + 4, min(at + 60, at + size))
        if (tag or count == claimed) and (count or claimed):
            streams.append(_stream(start, at, lost, count, claimed))
            claimed, count, start, lost = None, 0, at, False
        if tag:
            claimed = int.from_bytes(tag[2] or tag[3], "big") if tag[3] or tag[1][0] & 1 else None
        else:
            count += 1
        at += size
    lost |= at > len(data) or data[at : at + 1] == b"\xff"
    if streams and count == 1 and claimed is None:  # some encoders count a frame too few
        return [*streams[:-1], streams[-1]._replace(stop=len(data), whole=streams[-1].whole and not lost)]
    return [*streams, _stream(start, len(data), lost, count, claimed)]


def _stream(start: int, stop: int, lost: bool, count: int, claimed: int | None) -> Stream:
    few = claimed is not None and count < claimed - 1  # some encoders count the tag's own frame
    return Stream(start, stop, not (lost or few), claimed is not None)


def frame_bytes(data: bytes, at: int) -> int:
    """Size of the frame whose header stands there; 0 where none does."""
    head = int.from_bytes(data[at : at + 4], "big")
    version, layer, rate = head >> 19 & 3, 4 - (head >> 17 & 3), head >> 10 & 3  # version 3: MPEG 1; 2: 2; 0: 2.5
    kbps, padding, one = head >> 12 & 15, head >> 9 & 1, version == 3
    if head >> 21 != 0x7FF or version == 1 or layer == 4 or kbps in (0, 15) or rate == 3:
        return 0
    bits, hz = (
        1000 * _KBPS[one, layer if one else min(layer, 2)][kbps],
        _HZ[rate] >> (0, 1, 2)[(3, 2, 0).index(version)],
    )
    if layer == 1:
        return (12 * bits // hz + padding) * 4
    return (144 if one or layer == 2 else 72) * bits // hz + padding


def past_tags(data: bytes, at: int) -> int:
    """The first byte from there on that belongs to no ID3, APE or Lyrics3 tag, nor to a filling of zeros."""
    while at < len(data):
        if data[at : at + 3] == b"ID3":
            size = data[at + 6 : at + 10]  # seven bits a byte
            at += 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
        elif data[at : at + 3] == b"TAG":
            at += 128
        elif data[at : at + 8] == b"APETAGEX":
            at += 32 + int.from_bytes(data[at + 12 : at + 16], "little")
        elif data[at : at + 11] == b"LYRICSBEGIN" and (end := data.find(b"LYRICS200", at)) > 0:
            at = end + 9
        elif filling := _ZEROS.match(data, at):
            at = filling.end()
        else:
            break
    return at


def _next_frame(data: bytes, at: int) -> int:
    """Where the next frame begins, behind tags and whatever else is no frame; the end of the data where none does."""
    at = past_tags(data, at)
    while 0 <= (at := data.find(b"\xff", at)):
        if size := frame_bytes(data, at):
            end = at + size
            if end >= len(data) or frame_bytes(data, end) or past_tags(data, end) > end:
                return at
        at += 1
    return len(data)


def wav_data(data: bytes) -> tuple[int, int]:
    """Offset and size of the samples of a WAV by its header, of which `data` is the beginning; (0, 0) if not there."""
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return at + 8, size
        at += 8 + size + size % 2
    return 0, 0


def flac_claims(head: bytes) -> int:
    """Samples of each channel by a FLAC's STREAMINFO; 0: it does not say, or this is no FLAC."""
    return int.from_bytes(head[18:26], "big") & (1 << 36) - 1 if head[:4] == b"fLaC" else 0


def flac_samples(head: bytes, tail: bytes) -> int | None:
    """Samples of a FLAC by the header of its last frame; None where it is not found, or by chance where none is.

    `head` are its first 42 bytes at least, `tail` its last ones, more than a frame.
    """
    block_size = int.from_bytes(head[10:12], "big")  # the largest; of all but the last frame where sizes are fixed
    for match in reversed(list(_FLAC_FRAME.finditer(tail))):
        frame = tail[match.start() : match.start() + 16]
        size_code, rate_code = (frame[2] >> 4, frame[2] & 15) if len(frame) == 16 else (0, 15)
        length = 8 - (~frame[4] & 0xFF).bit_length() if len(frame) == 16 else 0  # leading ones, as in UTF-8
        if not size_code or rate_code == 15 or length in (1, 8):
            continue
        number = frame[4] & (0x7F >> length)
        for byte in frame[5 : 4 + max(1, length)]:
            number = number << 6 | byte & 0x3F
        at = 4 + max(1, length)
        extra = {6: 1, 7: 2}.get(size_code, 0)
        size = int.from_bytes(frame[at : at + extra], "big") + 1
        at += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
        if _crc8(frame[:at]) != frame[at]:
            continue
        size = size if extra else 192 if size_code == 1 else 144 << size_code if size_code < 6 else 1 << size_code
        return size + (number if frame[1] & 1 else number * block_size)
    return None


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
