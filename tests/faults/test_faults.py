"""What machines do to a run, each fault once: `python -m tests.faults --short` in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = ("killed", "warned", "full", "damaged", "reader", "gone", "loss", "gradient", "losses", "weights", "ranks")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The rows of each case; one process does them all, so that imports are paid for once."""
    file = tmp_path_factory.mktemp("faults") / "rows.json"
    command = [sys.executable, "-m", "tests.faults", "--short", "--json", str(file)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert file.is_file(), done.stderr[-4000:]
    rows: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())
    return rows


@pytest.mark.parametrize("case", CASES)
def test_what_is_promised_holds(case: str, table: dict[str, list[dict[str, Any]]]) -> None:
    assert table[case]
    for row in table[case]:
        assert row["times"] > 0 and row["ended"] and not row["faults"], row


def test_every_case_is_done(table: dict[str, list[dict[str, Any]]]) -> None:
    assert tuple(table) == CASES
