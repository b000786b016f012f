#!/usr/bin/env bash
# pydantic 2.14.4: in `Annotated[int, BeforeValidator(f), Field(ge=1)]` the bound is enforced, but the JSON Schema says
# `ge: 1`, a keyword that JSON Schema does not have, so that editors and validators ignore it. With the Field first it
# says `minimum: 1`.
# Exit 0: seen again; 1: it has changed.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pydantic==2.14.4
"$folder/venv/bin/python" - <<'PY'
import sys
from typing import Annotated
from pydantic import BeforeValidator, Field, TypeAdapter

same = BeforeValidator(lambda value: value)
after = TypeAdapter(Annotated[int, same, Field(ge=1)]).json_schema()
before = TypeAdapter(Annotated[int, Field(ge=1), same]).json_schema()
print("Field last:", after, " Field first:", before)
sys.exit(not ("ge" in after and "minimum" not in after and before.get("minimum") == 1))
PY
