"""What benchmarks share: commands in a process of their own, tables in Markdown, and means over seeds."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def sottovoce(*arguments: str) -> None:
    """Run a command of the package."""
    code = "import sys; from sottovoce.cli.main import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def origin(script: str, seeds: Sequence[int], run: Path) -> str:
    """How a document came about; `run` is one of the runs that it tells of."""
    here = read(run / "environment.json")
    command = f"python benchmarks/{script} --seeds {' '.join(map(str, seeds))}"
    return (
        f"Written by `{command}` on {time.strftime('%Y-%m-%d')}:\nCPU threads a run: {here['threads']}, "
        f"torch {here['packages']['torch']}, transformers {here['packages']['transformers']}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """Lines of Markdown, `words` columns of words and the others of numbers."""
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return "\n".join([first, f"|{'---|' * words}{'---:|' * (len(head) - words)}", *others])


def cell(values: Sequence[float], to: str = "-") -> str:
    """The mean, and the lowest and the highest in brackets."""
    return f"{statistics.mean(values):.1f} ({min(values):.1f}{to}{max(values):.1f})"
