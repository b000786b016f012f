"""`prepare --download`: official archives from a server on localhost, and all that can go wrong with it."""

import io
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.helpers.corpora import crema_d, dailytalk, emodb, kept, librispeech, speechocean762, tone
from tests.helpers.errors import refused
from tests.helpers.file_server import FileServer, serving_files

from sottovoce.cli.main import main
from sottovoce.data.corpora import CORPORA, download
from sottovoce.data.corpora.published import Published
from sottovoce.errors import Code

OCEAN = "101/speechocean762.tar.gz"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as made:
        yield made


def tarred(folder: Path, *names: str, top: str) -> bytes:
    """Files or folders of `folder` in a tar.gz, below the folder `top`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in names or ("",):
            tar.add(folder / name, str(Path(top, name)))
    return stream.getvalue()


def serve_librispeech(server: FileServer, folder: Path) -> None:
    librispeech(folder)
    for old, new in (("train-clean-100", "train-clean-5"), ("dev-clean", "dev-clean-2")):
        (folder / old).rename(folder / new)
        server.files[f"31/{new}.tar.gz"] = tarred(folder, new, "SPEAKERS.TXT", top="LibriSpeech")
    for part in ("test-clean", "dev-other"):
        server.files[f"12/{part}.tar.gz"] = tarred(folder, part, "SPEAKERS.TXT", top="LibriSpeech")


def serve_speechocean762(server: FileServer, folder: Path) -> None:
    speechocean762(folder)
    server.files[OCEAN] = tarred(folder, top="speechocean762")


def serve_emodb(server: FileServer, folder: Path) -> None:
    emodb(folder)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for file in sorted(folder.rglob("*.*")):
            zipped.write(file, file.relative_to(folder))
    server.files["download.zip"] = stream.getvalue()


def serve_crema_d(server: FileServer, folder: Path) -> None:
    crema_d(folder)
    server.files.update({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")})


def prepare(name: str, source: Path, out: Path, server: FileServer, *more: str) -> int:
    where = ["--source", str(source), "--out", str(out), "--download", "--mirror", server.url]
    return main(["prepare", name, *where, *more])


def corpus_of(name: str, source: Path, **knobs: Any) -> Published:
    corpus = CORPORA.build({"type": name, "source": str(source), **knobs})
    assert isinstance(corpus, Published)
    return corpus


@pytest.mark.parametrize(
    ("name", "serve", "more", "lines"),
    [
        ("librispeech", serve_librispeech, [], {"train": 2, "validation": 2}),
        ("librispeech", serve_librispeech, ["parts=[mini,test-clean]"], {"train": 2, "validation": 2, "test-clean": 2}),
        ("librispeech", serve_librispeech, ["parts=[dev-other]"], {"validation": 2}),
        ("speechocean762", serve_speechocean762, [], {"train": 14, "validation": 2, "test": 16}),
        ("emodb", serve_emodb, [], {"train": 27, "validation": 18, "test": 18}),
        ("crema_d", serve_crema_d, [], {"train": 98, "validation": 14, "test": 28}),
    ],
)
def test_what_is_downloaded_once_becomes_manifests(
    name: str, serve: Callable[[FileServer, Path], None], more: list[str], lines: dict[str, int], server: FileServer,
    source: Path, out: Path, tmp_path: Path,
) -> None:  # fmt: skip
    serve(server, tmp_path / "theirs")
    assert prepare(name, source, out, server, *more) == 0
    page = kept(out)
    assert {split: found["lines"] for split, found in page["splits"].items()} == lines and not page["problems"]
    asked = len(server.asked)
    assert prepare(name, source, out, server, *more) == 0 and len(server.asked) == asked
    assert not list(source.rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "serve", "path"),
    [
        ("librispeech", serve_librispeech, "31/dev-clean-2.tar.gz"),
        ("speechocean762", serve_speechocean762, OCEAN),
        ("emodb", serve_emodb, "download.zip"),
        ("crema_d", serve_crema_d, "VideoDemographics.csv"),
    ],
)
def test_what_a_server_does_not_have_is_told_by_its_address(
    name: str, serve: Callable[[FileServer, Path], None], path: str, server: FileServer, source: Path, tmp_path: Path
) -> None:
    serve(server, tmp_path / "theirs")
    codes: dict[int, Code] = {404: "not-found", 503: "unavailable"}
    for status, code in codes.items():
        server.statuses[path] = status
        with refused(code, path):
            corpus_of(name, source).download(server.url)
    del server.statuses[path]
    corpus_of(name, source).download(server.url)


@pytest.mark.parametrize("name", ["librispeech", "speechocean762", "emodb", "crema_d"])
def test_a_server_that_is_not_there(name: str, source: Path) -> None:
    with refused("unavailable"):
        corpus_of(name, source).download("http://127.0.0.1:9")


ARCHIVES = [
    ("librispeech", serve_librispeech, "31/train-clean-5.tar.gz"),
    ("speechocean762", serve_speechocean762, OCEAN),
    ("emodb", serve_emodb, "download.zip"),
]


@pytest.mark.parametrize(("name", "serve", "path"), ARCHIVES)
@pytest.mark.parametrize("broken", [b"<html>Sorry</html>", None], ids=["html", "damaged"])
def test_a_broken_archive_is_told_by_its_file_and_loaded_anew(
    name: str, serve: Callable[[FileServer, Path], None], path: str, broken: bytes | None, server: FileServer,
    source: Path, out: Path, tmp_path: Path,
) -> None:  # fmt: skip
    serve(server, tmp_path / "theirs")
    whole = server.files[path]
    middle = len(whole) // 2
    server.files[path] = broken or whole[:middle] + bytes(200) + whole[middle + 200 :]
    with refused("damaged", Path(path).name):
        corpus_of(name, source).download(server.url)
    assert prepare(name, source, out, server) == 2 and not (out / "report.json").exists()
    server.files[path] = whole
    server.asked.clear()
    assert prepare(name, source, out, server) == 0
    assert (path, 0) in server.asked and not kept(out)["problems"]


@pytest.mark.parametrize(("name", "serve", "path"), ARCHIVES[:2])
def test_a_download_that_was_cut_short_goes_on(
    name: str, serve: Callable[[FileServer, Path], None], path: str, server: FileServer, source: Path, out: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    serve(server, tmp_path / "theirs")
    server.cut[path] = len(server.files[path]) // 2
    with refused("damaged", Path(path).name):
        corpus_of(name, source).download(server.url)
    sent = server.cut.pop(path)
    server.asked.clear()
    assert prepare(name, source, out, server) == 0
    assert (path, sent) in server.asked and not kept(out)["problems"]


@pytest.mark.parametrize("name", ["librispeech", "speechocean762"])
def test_an_archive_may_not_write_elsewhere(name: str, server: FileServer, source: Path, tmp_path: Path) -> None:
    tone(tmp_path / "clip.wav")
    path = OCEAN if name == "speechocean762" else "31/train-clean-5.tar.gz"
    server.files[path] = tarred(tmp_path, "clip.wav", top="../elsewhere")
    with refused("unsafe", Path(path).name):
        corpus_of(name, source).download(server.url)
    assert not (tmp_path / "elsewhere").exists()


def test_a_clip_of_crema_d_that_is_not_there_is_missing_and_no_more(
    server: FileServer, source: Path, out: Path, tmp_path: Path
) -> None:
    serve_crema_d(server, tmp_path / "theirs")
    del server.files["AudioWAV/1001_DFA_SAD_XX.wav"]
    assert prepare("crema_d", source, out, server) == 0
    assert kept(out)["problems"] == {"missing": {"count": 1, "names": ["AudioWAV/1001_DFA_SAD_XX.wav"]}}


def test_a_clip_of_crema_d_that_was_cut_short_is_loaded_anew(
    server: FileServer, source: Path, out: Path, tmp_path: Path
) -> None:
    serve_crema_d(server, tmp_path / "theirs")
    server.cut["AudioWAV/1001_DFA_SAD_XX.wav"] = 1000
    assert prepare("crema_d", source, out, server) == 0
    assert list(kept(out)["problems"]) == ["damaged"]  # the server sends no more, the second time either
    server.cut.clear()
    assert prepare("crema_d", source, out, server) == 0 and not kept(out)["problems"]


def test_a_server_that_sends_nothing_is_given_up(
    server: FileServer, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.2)
    before = socket.getdefaulttimeout()
    server.hangs.add("download.zip")
    assert prepare("emodb", source, out, server) == 2
    assert f"{server.url}/download.zip: " in capsys.readouterr().err and socket.getdefaulttimeout() == before


def test_dailytalk_comes_from_its_drive(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gdown, which is no package of ours: a fake that writes the archive."""
    dailytalk(tmp_path / "theirs/dailytalk", {"0": [1, 0, 1], "23": [0, 1]})
    monkeypatch.setitem(sys.modules, "gdown", None)
    with refused("unavailable"):
        corpus_of("dailytalk", source).download()
    broken = [True]

    def fetch(url: str, output: str, **_: Any) -> None:
        assert url.startswith("https://drive.google.com/")
        with zipfile.ZipFile(output, "w") as zipped:
            for file in sorted((tmp_path / "theirs").rglob("*.*")):
                zipped.write(file, file.relative_to(tmp_path / "theirs"))
        if broken.pop() if broken else False:
            Path(output).write_bytes(Path(output).read_bytes()[:500])

    gdown = ModuleType("gdown")
    gdown.__spec__ = ModuleSpec("gdown", None)
    vars(gdown)["download"] = fetch
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    with refused("damaged", "dailytalk.zip"):
        corpus_of("dailytalk", source).download()
    assert main(["prepare", "dailytalk", "--source", str(source), "--out", str(out), "--download"]) == 0
    assert {split: found["lines"] for split, found in kept(out)["splits"].items()} == {"train": 3, "validation": 2}
    with refused("conflict", "mirror"):
        corpus_of("dailytalk", source).download("http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["meld", "styletalk", "textrolspeech", "voicebench"])
def test_what_no_program_can_download_is_refused_with_its_site(name: str, source: Path, capsys: Any) -> None:
    with refused("conflict", "download"):
        corpus_of(name, source).download()
    assert main(["prepare", name, "--source", str(source), "--out", str(source), "--download"]) == 2
    told = capsys.readouterr().err
    assert type(corpus_of(name, source)).site in told and ".co" in told and "docs/corpora.md" in told


def test_a_mirror_without_a_download_and_a_corpus_of_the_demo(source: Path, capsys: Any) -> None:
    assert main(["prepare", "emodb", "--source", ".", "--out", str(source), "--mirror", "http://x"]) == 2
    assert main(["prepare", "demo_world", "--out", str(source), "--download"]) == 2
    assert "mirror: " in (told := capsys.readouterr().err) and "download: " in told


def test_without_lhotse_a_download_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lhotse"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with refused("unavailable", "download"):
        download.fetch("http://127.0.0.1:9/a.zip", source / "a.zip")
