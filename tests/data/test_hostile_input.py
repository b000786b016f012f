"""Hostile input: no crash but one message, no hang, no memory bomb, nothing read outside, no code that comes along.

`python -m tests.helpers.fuzz` does the same by the hundred thousand.
"""

import json
import os
import pickle
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.helpers.errors import refused
from tests.helpers.hostile import Audio, Manifests, outcome
from tests.helpers.hostile_models import Bundles, Recipes, pickled

from sottovoce.cli.main import main
from sottovoce.config_tree import read_tree, read_yaml
from sottovoce.data import manifest_schema
from sottovoce.data.audio import load_audio
from sottovoce.data.audio_decoder import MAX_CHANNELS, read_header
from sottovoce.data.manifest import read_manifest
from sottovoce.encoders.feature_cache import FeatureCache
from sottovoce.encoders.whisper import read_dims, read_weights
from sottovoce.errors import AudioError, BundleError, Code, ConfigError, ManifestError, SottovoceError
from sottovoce.lightning_modules.bundle import bundle_weights
from sottovoce.lightning_modules.curriculum import read_trained

quick = settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), 
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
LINE_KEYS = st.sampled_from(
    ["id", "audio", "text", "seconds", "labels", "context", "responses", "category", "answers", "topic", "caption", "x"]
)


@pytest.mark.parametrize(("kind", "count"), [(Manifests, 150), (Audio, 150), (Bundles, 15), (Recipes, 10)])
def test_each_input_is_read_or_refused_with_a_message(
    kind: Any, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_schema, "read_header", manifest_schema.read_header)  # which `Manifests` watches
    tried, read = kind(tmp_path / "work"), 0
    for number in range(count):
        rng = random.Random(f"ci/{kind.__name__}/{number}")
        read += outcome(tried, tried.make(rng), rng)
    assert 0 < read < count  # both happen, or the inputs are too tame or too wild to say anything


@quick
@given(st.lists(st.dictionaries(LINE_KEYS, VALUES), min_size=1, max_size=3))
def test_any_json_is_a_manifest_or_a_message(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    soundfile.write(tmp_path / "ok.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    file = tmp_path / "m.jsonl"
    file.write_text("\n".join(json.dumps({"audio": "ok.wav", **record}) for record in records))
    try:
        found = read_manifest(file, choices={"emotion": ("sad",)}, policy="skip")
    except ManifestError as error:
        assert all(line.isprintable() for line in str(error).splitlines())
    else:
        assert all(u.id.strip() and u.seconds > 0 for u in found.utterances)


@quick
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=5), st.text(max_size=30))
def test_any_yaml_is_plain_values_or_a_message(tmp_path: Path, tree: dict[str, Any], tail: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True) + tail, "utf-8", "surrogatepass")
    try:
        found = read_yaml(file)
    except ConfigError as error:
        assert str(file) in str(error)
    else:
        json.dumps(found, default=lambda value: {bytes: "bytes"}[type(value)])


def bomb() -> str:
    return "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        (bomb(), "unsafe", "r.yaml:1"),
        ("b: 1\na: &a [*a]\n", "unsafe", "r.yaml:2"),
        ("a: *nowhere\n", "unsafe", "r.yaml:1"),
        ("[" + "x, " * 100_000 + "x]", "unsafe", "r.yaml"),
        ("a: " + "[" * 3000, "unsafe", "r.yaml"),
        ("a: " + "{b: " * 3000, "unsafe", "r.yaml"),
        ("#" * (1 << 21), "unsafe", "r.yaml"),
        ("seed: " + "9" * 10_000, "damaged", "r.yaml"),
        ("a: !!timestamp x", "damaged", "r.yaml"),
        ("a: !!python/object/apply:os.system ['touch {ran}']", "damaged", "r.yaml"),
        ("a: !!python/object/apply:builtins.open ['{ran}', 'w']", "damaged", "r.yaml"),
        ("a: !!python/module:antigravity", "damaged", "r.yaml"),
        ("a: \"${oc.create:'{b: 1}'}\"", "unsafe", "r.yaml"),
        ("a: '${oc.${b}:x}'", "unsafe", "r.yaml"),
        ("1: 2", "bad-value", "r.yaml"),
        ("extends: 3", "bad-value", "extends"),
    ],
)  # fmt: skip
def test_yaml_neither_runs_nor_grows(tmp_path: Path, text: str, code: Any, where: str) -> None:
    (tmp_path / "r.yaml").write_text(text.replace("{ran}", str(tmp_path / "ran")))
    before, began = memory(), time.process_time()
    with refused(code, where, ConfigError):
        read_tree(tmp_path / "r.yaml")
    assert memory() - before < 200 and time.process_time() - began < 20  # a bomb would take all there is
    assert not (tmp_path / "ran").exists()


def test_a_few_files_that_extend_each_other_are_not_very_many(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text(f"extends: [{', '.join([f'{number + 1}.yaml'] * 9)}]\n")
    (tmp_path / "9.yaml").write_text("seed: 1\n")
    with refused("unsafe", "9.yaml", ConfigError):
        read_tree(tmp_path / "0.yaml")


@pytest.mark.parametrize("value", ["true", "yes", "1", '"${x}"', "'True'"])
def test_a_file_cannot_grant_trust_and_the_command_line_can(tmp_path: Path, value: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"x: true\nllm: {{trust_remote_code: {value}}}\nlist: [{{engine: {{trust_remote_code: true}}}}]\n")
    with refused("unsafe", "llm.trust_remote_code", ConfigError):
        read_tree(file)
    with refused("unsafe", "list.0.engine.trust_remote_code", ConfigError):
        read_tree(file, ["llm.trust_remote_code=true"])
    file.write_text(f"llm: {{trust_remote_code: {value}}}\n")
    assert read_tree(file, ["llm.trust_remote_code=true"])["llm"]["trust_remote_code"] is True
    assert read_tree(file, ["llm.trust_remote_code=false"])["llm"]["trust_remote_code"] is False


def test_the_flag_is_that_override_and_a_recipe_alone_is_not(
    write_recipe: Callable[..., str], tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, asking = write_recipe(), write_recipe
    assert main(["fit", "--config", plain, "--print-config", "--trust-remote-code"]) == 0
    assert "trust_remote_code: true" in capsys.readouterr().out
    assert main(["fit", "--config", asking(llm={**tree["llm"], "trust_remote_code": True}), "--print-config"]) == 2
    assert "asks to run code that comes with the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("slots.paralinguistic.adapter.tokens=1000000000", "tokens must be at most"),
        ("slots.paralinguistic.adapter.layers=1000000", "layers must be at most"),
        ("slots.linguistic.adapter.hidden=100000000000", "its weights take"),
        ("slots.linguistic.adapter.hidden=100000000000000000000", "adapter"),
    ],
)
def test_a_number_too_large_is_told_and_not_tried(
    change: str, message: str, write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = memory()
    assert main(["fit", "--config", write_recipe(), "--dry-run", change]) == 2
    assert message in capsys.readouterr().err and memory() - before < 1000


def test_a_bundle_whose_recipe_asks_for_more_than_it_holds(
    write_recipe: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = Bundles(tmp_path / "work")
    tree = {**bundles.recipe}
    tree["slots"]["linguistic"]["adapter"]["hidden"] = 500_000_000  # 64 GB of weights
    bundles.bundle.mkdir()
    for name, data in {**bundles.good, "recipe.yaml": yaml.safe_dump(tree).encode()}.items():
        (bundles.bundle / name).write_bytes(data)
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    before = memory()
    assert main(["chat", str(bundles.bundle), "--once", "--audio", str(tmp_path / "a.wav")]) == 2
    told = capsys.readouterr().err  # a machine with very much memory looks at the shapes
    assert ("its weights take" in told or "do not fit this recipe" in told) and memory() - before < 1000


@pytest.mark.parametrize("value", [torch.full((2, 2), float("nan")), torch.ones(2, dtype=torch.int8)])
def test_weights_that_no_training_leaves_are_refused(value: torch.Tensor, tmp_path: Path) -> None:
    save_file({"adapters.a": value}, tmp_path / "trained.safetensors")
    (tmp_path / "fingerprints.json").write_text("{}")
    with pytest.raises(BundleError):
        bundle_weights(tmp_path)


class Runs:
    """What pickles as a call of `os.mkdir`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def zipped(ran: Path, file: Path) -> None:
    torch.save({"state_dict": {"a": Runs(ran)}, "dims": Runs(ran), "model_state_dict": Runs(ran)}, file)


def bare(ran: Path, file: Path) -> None:
    file.write_bytes(pickle.dumps(Runs(ran)))


def called(ran: Path, file: Path) -> None:
    file.write_bytes(pickled(ran))


def from_bundle(file: Path) -> Any:
    return bundle_weights(file.parent)


def from_cache(file: Path) -> Any:
    cache = FeatureCache(file.parent, "0" * 16)
    place = cache.folder / "abc" / "abcdef.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(file.read_bytes())
    return cache.get("abcdef")


@pytest.mark.parametrize("write", [zipped, bare, called])
@pytest.mark.parametrize("read", [read_trained, read_dims, read_weights, from_bundle, from_cache])
def test_no_pickle_runs(write: Callable[..., None], read: Callable[[Path], Any], tmp_path: Path) -> None:
    """Checkpoints, an encoder's file, a bundle's weights, a file of the cache."""
    ran, file = tmp_path / "ran", tmp_path / "trained.safetensors"
    write(ran, file)
    if read in (read_dims, read_weights):
        file = file.rename(tmp_path / "encoder.pt")
    with pytest.raises(Exception) as raised:
        read(file)
    assert not ran.exists()
    assert read is read_trained or isinstance(raised.value, SottovoceError | KeyError)


def test_the_pickles_of_this_test_do_run_where_somebody_lets_them(tmp_path: Path) -> None:
    bare(tmp_path / "ran", tmp_path / "a")
    pickle.loads((tmp_path / "a").read_bytes())
    zipped(tmp_path / "ran2", tmp_path / "b")
    with pytest.raises(FileExistsError):  # three calls
        torch.load(tmp_path / "b", weights_only=False)
    assert (tmp_path / "ran").exists() and (tmp_path / "ran2").exists()


def wav(frames: int, rate: int, channels: int, told: int | None = None) -> bytes:
    """A WAV header of PCM that claims so many samples of each channel, with a second of noise behind it."""
    size = (frames if told is None else told) * channels * 2 & 0xFFFFFFFF
    head = b"RIFF" + (size + 36 & 0xFFFFFFFF).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += (1).to_bytes(2, "little") + channels.to_bytes(2, "little") + rate.to_bytes(4, "little")
    head += (rate * channels * 2 & 0xFFFFFFFF).to_bytes(4, "little") + (channels * 2 & 0xFFFF).to_bytes(2, "little")
    head += (16).to_bytes(2, "little") + b"data" + size.to_bytes(4, "little")
    return head + random.Random(0).randbytes(frames * channels * 2)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (wav(16000, 16000, 1, 36_000 * 16_000), "damaged"),
        (wav(1, 16000, 1), "bad-value"),
        (wav(16000, 16000, 1, 17_000), "damaged"),
        (wav(16000, 2**31, 1), "damaged"),
        (wav(16000, 0, 1), "damaged"),
        (wav(16000, 16000, 0), "damaged"),
        (wav(100, 16000, 60_000), "damaged"),
        (wav(1600, 16000, MAX_CHANNELS + 1), "unsafe"),
    ],
)
def test_a_header_that_lies_is_found_out_before_memory_is_taken(data: bytes, code: Code, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    before = memory()
    with refused(code, "a.wav", AudioError):
        load_audio(tmp_path / "a.wav")
    assert memory() - before < 300


def test_ten_hours_of_silence_in_a_small_file_are_not_decoded(tmp_path: Path) -> None:
    """FLAC says in some bytes that nothing is heard: a file of megabytes may stand for gigabytes."""
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 8000, 1, format="FLAC") as file:
        for _ in range(600):
            file.write(np.zeros(60 * 8000, np.int16))
    before = memory()
    for read in (load_audio, read_header):
        with refused("bad-value", "a.flac", AudioError):
            read(tmp_path / "a.flac")
    assert memory() - before < 100


def test_what_a_terminal_would_obey_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text('"x\\e]0;title\\a\\e[2J": 1\n')
    assert main(["fit", "--config", str(tmp_path / "r.yaml")]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and "\\x1b[2J" in told


def memory() -> int:
    """The most that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
