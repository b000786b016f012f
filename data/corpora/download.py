"""Downloads of corpora by Lhotse: by its own recipe where it has one, else its resumable download of plain files."""

import gzip
import shutil
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from sottovoce.errors import MissingError, first_line

SILENCE = 60.0  # seconds without a byte
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_OUTSIDE = "Path Traversal"  # what Lhotse says of a tar file whose paths leave the folder


def lhotse() -> Any:
    """The package; `MissingError` where it is not installed."""
    try:
        import lhotse.utils
    except ImportError as error:
        told = f"downloads are Lhotse's: pip install 'sottovoce[download]' ({first_line(error)})"
        raise MissingError.at("download", "unavailable", told) from None
    return lhotse


@contextmanager
def patience() -> Iterator[None]:
    """Give a server up that sends nothing for a while; Lhotse would wait for ever. Sockets of the process share it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def downloading(url: str, file: Path) -> Iterator[None]:
    """Tell of what goes wrong on the way: `url` that is not there, or a server that does not answer.

    Raises:
        MissingError: `not-found` for an address that the server does not have, else `unavailable`.
    """
    try:
        yield
    except HTTPError as error:
        gone = error.code in (403, 404, 410)
        told = f"HTTP {error.code} {error.reason}{'; --mirror names another server' if gone else ''}"
        raise MissingError.at(error.url or url, "not-found" if gone else "unavailable", told) from None
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        told = f"{first_line(error)}; the same command goes on from where it was"
        raise MissingError.at(url, "unavailable", told) from None
    finally:
        if file.is_file() and not file.stat().st_size:
            file.unlink()  # Lhotse opens it before it asks


@contextmanager
def unpacking(archive: Path) -> Iterator[None]:
    """Tell of an archive that cannot be unpacked: one that was cut short is kept and goes on, another is deleted.

    Raises:
        MissingError: `damaged`, with the archive as its place, or `unsafe` where it would write elsewhere.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, tarfile.FilterError) or _OUTSIDE in str(error):
            raise MissingError.at(archive, "unsafe", f"it would write outside of its folder: {error}") from None
        if not isinstance(error, _BROKEN):
            raise
        cut = isinstance(error, EOFError) or "end of data" in str(error)
        if not cut:
            archive.unlink(missing_ok=True)
        told = f"cannot be unpacked ({first_line(error)}); the same command {'goes on' if cut else 'loads it anew'}"
        raise MissingError.at(archive, "damaged", told) from None


def fetch(url: str, file: Path) -> None:
    """Download `url`, once: the file appears whole, and a download that was interrupted goes on.

    Raises:
        MissingError: Lhotse is not installed, or see `downloading`.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        package = lhotse()
        with downloading(url, part):
            package.utils.resumable_download(url, filename=part)
        part.replace(file)


def fetch_archive(url: str, folder: Path) -> None:
    """Download a tar or zip file into `folder` and unpack it there, once.

    Raises:
        MissingError: see `fetch`, and `unpacking`.
    """
    archive = folder / url.rpartition("/")[2]
    done = archive.with_name(f".{archive.name}.unpacked")
    if done.is_file():
        return
    fetch(url, archive)
    try:
        with unpacking(archive):
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(folder)
            else:
                _check(archive)
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
    except MissingError:
        if archive.is_file():  # it was cut short
            archive.replace(archive.with_name(f"{archive.name}.part"))
        raise
    done.touch()
    archive.unlink()


def _check(archive: Path) -> None:
    """Read a gzipped file to its checksum: `tarfile` takes damage that looks like an end for the end."""
    if archive.suffix == ".gz":
        with gzip.open(archive) as stream:
            while stream.read(1 << 20):
                pass


def librispeech(parts: list[str], folder: Path, base_url: str) -> None:
    """Parts of LibriSpeech or Mini LibriSpeech into `folder/LibriSpeech`, by Lhotse's recipe.

    Raises:
        MissingError: see `fetch_archive`.
    """
    lhotse()
    from lhotse.recipes.librispeech import download_librispeech

    for part in parts:
        archive, unpacked = folder / f"{part}.tar.gz", folder / "LibriSpeech" / part
        if (unpacked / ".completed").is_file():  # by Lhotse
            continue
        with downloading(base_url, archive), unpacking(archive):
            download_librispeech(folder, [part], base_url=base_url)
            try:
                _check(archive)
            except _BROKEN:
                shutil.rmtree(unpacked)
                raise


def daily_talk(folder: Path) -> None:
    """DailyTalk into `folder/dailytalk`, by Lhotse's recipe, from the authors' Google Drive.

    Raises:
        MissingError: see `fetch_archive`; or gdown, which Lhotse needs for it, is not installed.
    """
    lhotse()
    from lhotse.recipes.daily_talk import DAILY_TALK_URL, download_daily_talk

    archive = folder / "dailytalk.zip"
    try:
        with downloading(DAILY_TALK_URL, archive), unpacking(archive):
            download_daily_talk(folder)
    except MissingError:
        shutil.rmtree(folder / "dailytalk", ignore_errors=True)  # half of it is taken for the whole the next time
        raise
    except Exception as error:  # gdown is not there, or has errors of its own
        raise MissingError.at(DAILY_TALK_URL, "unavailable", first_line(error)) from None
