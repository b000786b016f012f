"""No line of the package loads what may run: pickles, YAML with tags, code of a checkpoint."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("src", "adapters", "conf", "data", "demo", "encoders", "evaluation", "lightning_modules", "llms", "benchmarks")
SAFE_YAML = ("yaml.safe_load", "yaml.safe_dump", "yaml.parse")


def calls(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call of a file: its dotted name, and its keyword arguments as they are written."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {str(k.arg): ast.unparse(k.value) for k in node.keywords}


def faults(file: Path) -> list[str]:
    found = []
    for name, known in calls(file):
        if name == "torch.load" and known.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name.endswith(".fit") and "ckpt_path" in known and known.get("weights_only") != "True":
            found.append("a checkpoint of Lightning without weights_only=True")
        if re.match(r"(c?[pP]ickle|joblib|dill|cloudpickle|marshal|shelve)\.|.*load_from_checkpoint$", name):
            found.append(name)
        if name in ("eval", "exec", "numpy.load", "np.load", "os.system") or known.get("allow_pickle") == "True":
            found.append(name)
        texts_alone = name == "yaml.load" and known.get("Loader") == "yaml.BaseLoader"
        if re.match(r"yaml\.", name) and name not in SAFE_YAML and not texts_alone:
            found.append(name)
        if known.get("trust_remote_code") == "True" or known.get("shell") == "True":
            found.append(f"{name}(trust_remote_code or shell)")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_loaded_that_may_run(room: str) -> None:
    assert {str(file): faults(file) for file in (ROOT / room).rglob("*.py") if faults(file)} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "pickle.load(f)", "yaml.load(f, Loader=L)",
        "joblib.load(f)", "np.load(f, allow_pickle=True)", "Model.load_from_checkpoint(f)", "eval(x)",
        "trainer.fit(m, ckpt_path=f)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "subprocess.run(c, shell=True)",
    ],
)  # fmt: skip
def test_the_test_finds_such_a_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line)
    assert faults(tmp_path / "a.py")
