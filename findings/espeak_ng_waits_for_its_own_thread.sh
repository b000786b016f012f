#!/usr/bin/env bash
# espeakng-loader 0.2.4 (eSpeak NG 1.52): with output mode 1 (retrieval), which most bindings take, espeak_Synchronize
# sleeps until another thread has spoken: some 10 ms an utterance more than the 2 ms of work, so that short ones take six
# times as long. With mode 2 (synchronous) the calling thread speaks, without a sleep, and the samples are the same.
# Seen (two busy cores): mode 1 12.8 ms an utterance, 2.2 of CPU, 2.8 sleeps; mode 2 2.1 ms, 1.8 of CPU, 0 sleeps.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q espeakng-loader==0.2.4
cat > "$folder/say.py" <<'PY'
import ctypes
import hashlib
import resource
import sys
import time

import espeakng_loader

COUNT, TEXT = 100, b"Please open the window a little.\0"
library = ctypes.CDLL(espeakng_loader.get_library_path())
library.espeak_Initialize(int(sys.argv[1]), 0, espeakng_loader.get_data_path().encode(), 0)
library.espeak_ng_SetRandSeed(ctypes.c_long(1))
samples = hashlib.md5()


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
def collect(found, count, _):
    samples.update(ctypes.string_at(found, 2 * count) if count > 0 else b"")
    return 0


library.espeak_SetSynthCallback(collect)
library.espeak_SetVoiceByName(b"en-us")
start, cpu, sleeps = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
for _ in range(COUNT):
    library.espeak_Synth(TEXT, len(TEXT), 0, 0, 0, 1, None, None)
    library.espeak_Synchronize()
took, cpu = time.perf_counter() - start, time.process_time() - cpu
sleeps = (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - sleeps) / COUNT
print(f"mode {sys.argv[1]}: {1000 * took / COUNT:.1f} ms an utterance, {1000 * cpu / COUNT:.1f} of CPU, {sleeps:.1f} sleeps", file=sys.stderr)
print("sleeps" if sleeps >= 1 else "does not sleep", samples.hexdigest())
PY
say() { "$folder/venv/bin/python" "$folder/say.py" "$1"; }
retrieval=$(say 1); synchronous=$(say 2)
[ "${retrieval% *}" = "sleeps" ] && [ "${synchronous% *}" = "does not sleep" ] && [ "${retrieval##* }" = "${synchronous##* }" ]
