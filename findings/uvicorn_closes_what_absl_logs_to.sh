#!/usr/bin/env bash
# rouge-score 0.1.2 (absl-py 2.5.1) and uvicorn 0.54.0: importing rouge_score keeps that moment's sys.stderr in absl's log
# handler. Building a uvicorn.Config later (as Gradio's launch does) sets up logging by dictConfig, which closes all
# handlers, and absl's closes its stream unless it is sys.stderr at that time: a file to which standard error had been
# redirected while importing is closed under its owner. Under pytest that file is the capture's own, and all later
# tests of the process fail with "I/O operation on closed file". Without the import, or with log_config=None, it stays.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "rouge-score==0.1.2" "absl-py==2.5.1" "uvicorn==0.54.0"
cd "$folder"
cat > serve.py <<'PY'
import contextlib
import sys

import uvicorn


async def app(scope, receive, send):
    pass


with open("log.txt", "w") as log:
    with contextlib.redirect_stderr(log):
        if "import" in sys.argv:
            import rouge_score.rouge_scorer  # noqa: F401
    uvicorn.Config(app, **({"log_config": None} if "unset" in sys.argv else {}))
    print("closed" if log.closed else "open")
PY
python="$folder/venv/bin/python"
seen="$($python serve.py import) $($python serve.py) $($python serve.py import unset)"
echo "rouge-score imported: ${seen%% *}; without it, and with log_config=None: ${seen#* }"
test "$seen" = "closed open open"
