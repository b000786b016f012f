#!/usr/bin/env bash
# mlflow-skinny 3.17.2 and lightning 2.6.6: MLFlowLogger() without arguments raises. Lightning's default store is a
# folder of files, ./mlruns, which mlflow refuses, since that is in maintenance mode, unless MLFLOW_ALLOW_FILE_STORE=true
# is set. The store which its message names instead, sqlite:///mlflow.db, raises too: mlflow-skinny has no SQL store
# (UnsupportedModelRegistryStoreURIException). With the variable set all is as before.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "lightning==2.6.6" "mlflow-skinny==3.17.2" numpy
cd "$folder"
cat > log.py <<'PY'
import sys

from lightning.pytorch.loggers import MLFlowLogger

uri = sys.argv[1:] or [None]
try:
    logger = MLFlowLogger(tracking_uri=uri[0])
    logger.log_metrics({"loss": 1.0}, step=0)
except Exception as error:
    print(f"{type(error).__module__}.{type(error).__name__}: {str(error)[:160]}")
    sys.exit(3)
print("logged")
PY
failed=0
for try in "" "sqlite:///mlflow.db"; do
    rc=0; "$folder/venv/bin/python" log.py $try 2>/dev/null || rc=$?
    test $rc = 3 || failed=1
done
rc=0; MLFLOW_ALLOW_FILE_STORE=true "$folder/venv/bin/python" log.py 2>/dev/null || rc=$?
test $rc = 0 || failed=1
exit $failed
