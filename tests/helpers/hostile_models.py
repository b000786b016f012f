"""Recipes and bundles as nobody should send them; see `tests.helpers.hostile`."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import save_tiny_whisper, tiny_tree
from tests.helpers.families import save_family
from tests.helpers.hostile import Canary, damaged, odd, twisted

from sottovoce.config import recipe as recipes
from sottovoce.lightning_modules.bundle import bundle_weights, read_bundle, write_bundle
from sottovoce.lightning_modules.speech_llm import SpeechLLM

RAN = "ran"  # the file that code hidden in an input would make


class Recipes:
    """Recipes whose tree or text was changed, with tags that would run code and aliases that would fill the memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.good, self.ran = folder, made_tree(folder), folder / RAN

    def make(self, rng: random.Random) -> bytes:
        tree = twisted(self.good, rng, rng.choice([0, 1, 1, 2, 5]))
        if rng.random() < 0.1:
            tree["llm" if rng.random() < 0.5 else "x"] = {"trust_remote_code": rng.choice([True, "true", 1, "${seed}"])}
        text = yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            text = damaged(text, rng)
        if rng.random() < 0.1:
            text += rng.choice(self._tricks()).encode()
        return text

    def _tricks(self) -> list[str]:
        bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
        )
        return [
            f"x: !!python/object/apply:os.system ['touch {self.ran}']\n",
            f"x: !!python/object/new:pathlib.Path ['{self.ran}']\n",
            f"x: !!python/name:os.system\ny: !!python/module:{RAN}\n",
            bomb, "a: &a [*a]\n", "a: &a {b: *a}\n", "<<: *nowhere\n", "? [a, b]\n: 1\n", "1: 2\n", "null: 2\n",
            "x: " + "[" * 2000 + "\n", "x: " + "{a: " * 2000 + "\n", "x: 0b1:1:1\nseed: 1:59:59\n",
            "seed: 0x" + "f" * 5000 + "\n", "seed: " + "9" * 5000 + "\n", "x: !!timestamp no\n", "x: !!int ''\n",
            "x: !!float x\n", "x: !!binary '*'\n", "x: !!set {a, b}\n", "x: !!omap [1]\n", "--- \na: 1\n",
            "%YAML 9.9\n", "extends: [/dev/zero]\n",
            "extends: ['" + "x" * 5000 + "']\n", "extends: {a: 1}\n", "extends: [recipe.yaml, recipe.yaml]\n",
            "\x00\n", "\t- x\n",             "llm: \"${oc.create:'{checkpoint: x, trust_remote_code: true}'}\"\n",
            "seed: ${seed}\n", "name: ${x.${name}}\n",
        ]  # fmt: skip

    def check(self, data: bytes, rng: random.Random) -> bool:
        file = self.folder / "recipe.yaml"
        file.write_bytes(data)
        try:
            recipe = recipes.load(file, rng.choice([[], [], ["seed=3"], ["stages.joint.lr=1e-4"]]))
            if recipe.llm.trust_remote_code:
                raise Canary("a file has granted trust_remote_code")
            if rng.random() < 0.2:  # it takes long
                SpeechLLM(recipe)
        finally:
            if self.ran.exists():
                self.ran.unlink()
                raise Canary("code in YAML has run")
        return True


class Bundles:
    """Bundles of which one file was changed: weights whose header lies, pickles, recipes, fingerprints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self.ran = folder, folder / "bundle", folder / RAN
        module = SpeechLLM(recipes.parse(made_tree(folder)))
        module.configure_model()
        write_bundle(folder / "good", module, [])
        self.good = {file.name: file.read_bytes() for file in (folder / "good").iterdir()}
        self.recipe = yaml.safe_load(self.good["recipe.yaml"])

    def make(self, rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(["trained.safetensors"] * 4 + ["fingerprints.json", "recipe.yaml"])
        data = self.good[name]
        if name == "recipe.yaml":
            return name, yaml.dump(twisted(self.recipe, rng, rng.choice([1, 2]))).encode("utf-8", "surrogatepass")
        if name == "fingerprints.json":
            if rng.random() < 0.5:
                return name, damaged(data, rng)
            return name, json.dumps(odd(rng) if rng.random() < 0.3 else twisted(json.loads(data), rng, 1)).encode()
        kind = rng.random()
        if kind < 0.05:
            return name, pickled(self.ran)
        if kind < 0.4:
            return name, damaged(data, rng, front=2000)
        size = int.from_bytes(data[:8], "little")
        head = json.dumps(twisted(json.loads(data[8 : 8 + size]), rng, rng.choice([1, 1, 3]))).encode()
        if rng.random() < 0.2:
            head = head.replace(b"F32", rng.choice([b"I8", b"BOOL", b"F8_E4M3", b"F64", b"U64", b"C64", b"X"]), 1)
        told = rng.choice([len(head)] * 4 + [0, 1, 2**31, 2**62, 2**64 - 1, len(head) + 1])
        return name, told.to_bytes(8, "little") + head + data[8 + size :]

    def check(self, made: tuple[str, bytes], rng: random.Random) -> bool:
        shutil.rmtree(self.bundle, ignore_errors=True)
        self.bundle.mkdir()
        for name, data in {**self.good, made[0]: made[1]}.items():
            (self.bundle / name).write_bytes(data)
        try:
            weights = bundle_weights(self.bundle)
            if not all(bool(w.isfinite().all()) for w in weights.values()):
                raise Canary("accepted weights that are not finite")
            if made[0] != "trained.safetensors" or rng.random() < 0.2:  # it takes long
                read_bundle(self.bundle)
        finally:
            if self.ran.exists():
                self.ran.unlink()
                raise Canary("a pickle has run")
        return True


def made_tree(folder: Path) -> dict[str, Any]:
    """The recipe of conftest.py, of models that it makes in `folder`, with keys of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = tiny_tree(str(save_family("qwen2", folder / "llm")), save_tiny_whisper(folder), {}, folder)
    apart = {"tasks": {"asr": 1}, "err": {"speech": 1, "none": 1}, "lr": 1e-2, "train": ["linguistic"]}
    train = [{"manifest": "m.jsonl", "weight": 2.0, "allow": ["/x"]}]
    return {
        **tree, "data": {"cache": None, "train": train, "max_seconds": 30},
        "stages": {"joint": {**tree["stages"]["joint"], "betas": [0.9, 0.98]}, "apart": apart},
        "evaluation": {**tree["evaluation"], "tasks": ["asr"]},
    }  # fmt: skip


def pickled(ran: Path) -> bytes:
    """A pickle that makes the file `ran` when it is loaded."""
    return b"cposix\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
