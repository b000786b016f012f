#!/usr/bin/env bash
# soundfile 0.13.1 (its wheel's libsndfile, with mpg123): an MP3 of variable bit rate whose first frame is not a
# Xing/Info frame, as streams and some encoders leave them, is cut short without an error: the number of frames is
# estimated from the first bit rate, and reads are clamped to it. With the Info frame the same audio is whole.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q soundfile==0.13.1 numpy==2.2.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import pathlib, sys
import numpy, soundfile

folder = pathlib.Path(sys.argv[1])
rate = 16000
time = numpy.arange(11 * rate) / rate
noise = numpy.random.default_rng(0).normal(0, 0.2, len(time))
audio = numpy.where(time < 2, noise, 0.2 * numpy.sin(2 * numpy.pi * 300 * time))  # many bits at first, then few
whole, bare = folder / "whole.mp3", folder / "bare.mp3"
with soundfile.SoundFile(whole, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III",
                         bitrate_mode="VARIABLE", compression_level=0.5) as file:
    file.write(audio)
data = whole.read_bytes()
start = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] & 0xE0 == 0xE0)
following = next(i for i in range(start + 4, len(data)) if data[i : i + 2] == data[start : start + 2]
                 and not data[start:i].find(b"Xing") < 0 or data[start:i].find(b"Info") >= 0
                 and data[i : i + 2] == data[start : start + 2])
bare.write_bytes(data[following:])  # without the first frame, which holds no audio but the number of frames
read = {file.name: len(soundfile.read(file)[0]) for file in (whole, bare)}
print(soundfile.__libsndfile_version__, read, "of", len(audio), "samples")
sys.exit(not (read["whole.mp3"] >= len(audio) and read["bare.mp3"] < 0.9 * len(audio)))
PY
