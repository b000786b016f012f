#!/usr/bin/env bash
# safetensors 0.8.0: `save_file(tensors, path)` does not write into the file that stands at `path`; it writes another one
# and renames it. A handle that was opened before, to fsync what is written, belongs to the old file: after the save it
# is still empty, and syncing it makes nothing durable.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.2.6
"$folder/venv/bin/python" - "$folder" <<'PY'
import os, pathlib, sys
import numpy
from safetensors.numpy import save_file

path = pathlib.Path(sys.argv[1]) / "weights.safetensors"
with path.open("wb") as handle:
    save_file({"w": numpy.zeros(1000, numpy.float32)}, str(path))
    opened, named = os.fstat(handle.fileno()), path.stat()
print("opened: inode", opened.st_ino, opened.st_size, "bytes; at the path: inode", named.st_ino, named.st_size, "bytes")
sys.exit(not (opened.st_ino != named.st_ino and opened.st_size == 0 < named.st_size))
PY
