"""Downloads from a server on this machine, and what happens when there is none."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pooch
import pytest

from undistill.data import Remote, cache_dir, download, fetch, import_file, list_datasets, load_dataset, verify
from undistill.data.download import REMOTES
from undistill.errors import DataError, RecipeError, UnknownNameError

CONTENT = b"the published file" * 1000
CHECKSUM = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDISTILL_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    list_datasets()
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Serve a folder; yields its address, the folder and the list of requests so far."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            requests.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/data.bin", folder, requests
        http.shutdown()
        thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, url: str, checksum: str = CHECKSUM) -> None:
    monkeypatch.setitem(REMOTES, "cifar10", (Remote("data.bin", url, checksum),))


def test_every_published_file_has_a_checksum() -> None:
    assert {name: len(files) for name, files in REMOTES.items() if name in list_datasets()} == {
        "cifar10": 1,
        "cifar100": 1,
        "fashion_mnist": 4,
        "mnist": 4,
        "tiny_imagenet": 1,
        "usps": 2,
    }
    for files in REMOTES.values():
        assert all(len(file.checksum) == len("md5:") + 32 and file.url.endswith(file.filename) for file in files)


def test_fetch_downloads_once(
    server: tuple[str, Path, list[str]],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, folder, requests = server
    (folder / "data.bin").write_bytes(CONTENT)
    publish(monkeypatch, url)
    assert [row.state for row in verify("cifar10")] == ["missing"]
    assert fetch("cifar10") == fetch("cifar10") == (cache / "cifar10" / "data.bin",)
    assert (cache / "cifar10" / "data.bin").read_bytes() == CONTENT
    assert requests == ["/data.bin"]
    assert [row.state for row in verify("cifar10")] == ["ok"]
    assert capfd.readouterr() == ("", "")  # no log lines, and no bar where nobody sees it


def test_progress_on_a_terminal(
    server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder, _ = server
    (folder / "data.bin").write_bytes(CONTENT)
    publish(monkeypatch, url)
    monkeypatch.setattr(download.sys.stderr, "isatty", lambda: True)
    fetch("cifar10")
    assert "100%" in capsys.readouterr().err


def test_an_altered_file_is_replaced(
    server: tuple[str, Path, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder, _ = server
    (folder / "data.bin").write_bytes(CONTENT)
    publish(monkeypatch, url)
    (path,) = fetch("cifar10")
    path.write_bytes(CONTENT[:-1])
    (row,) = verify("cifar10")
    assert (row.state, row.expected) == ("altered", CHECKSUM)
    assert row.found == f"md5:{hashlib.md5(CONTENT[:-1]).hexdigest()}"
    fetch("cifar10")
    assert path.read_bytes() == CONTENT


def test_a_wrong_download_is_not_kept(
    server: tuple[str, Path, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder, _ = server
    (folder / "data.bin").write_bytes(b"altered")
    publish(monkeypatch, url)
    got = hashlib.md5(b"altered").hexdigest()
    with pytest.raises(DataError, match=f"expected {CHECKSUM}, got {got}; nothing was kept") as caught:
        load_dataset("cifar10")
    assert "\n" not in str(caught.value)
    assert list((cache / "cifar10").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data.bin", "http://no-such-host.invalid/data.bin", "nonsense"])
def test_no_network_says_how_to_place_the_file(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, url)
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10")
    for part in (url, CHECKSUM, f"by hand at {cache / 'cifar10' / 'data.bin'}"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_on_the_server(server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server[0])
    with pytest.raises(DataError, match=r"cannot download .*HTTPError"):
        fetch("cifar10")


def test_no_network_and_a_damaged_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "http://127.0.0.1:9/data.bin")
    (cache / "cifar10").mkdir(parents=True)
    (cache / "cifar10" / "data.bin").write_bytes(b"cut")
    with pytest.raises(DataError, match=f"the file there now is damaged: md5:{hashlib.md5(b'cut').hexdigest()}"):
        load_dataset("cifar10")


def test_cache_that_cannot_be_written(
    server: tuple[str, Path, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder, _ = server
    (folder / "data.bin").write_bytes(CONTENT)
    publish(monkeypatch, url)
    cache.write_text("a file where the folder should be")
    for action in (lambda: fetch("cifar10"), lambda: import_file("cifar10", folder / "data.bin")):
        with pytest.raises(DataError, match=r"cannot write .*data\.bin.*UNDISTILL_CACHE"):
            action()


def test_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "by_hand").write_bytes(CONTENT)
    publish(monkeypatch, "http://127.0.0.1:9/data.bin")

    def fill(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfile", fill)
    with pytest.raises(DataError, match="the disk is full"):
        import_file("cifar10", tmp_path / "by_hand")
    assert list((cache / "cifar10").iterdir()) == []


def test_import_by_checksum(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any name").write_bytes(CONTENT)
    (tmp_path / "other").write_bytes(b"other")
    publish(monkeypatch, "http://127.0.0.1:9/data.bin")
    assert import_file("cifar10", tmp_path / "any name") == cache / "cifar10" / "data.bin"
    assert fetch("cifar10") == (cache / "cifar10" / "data.bin",)
    with pytest.raises(DataError, match=rf"needs data\.bin \({CHECKSUM}\)"):
        import_file("cifar10", tmp_path / "other")
    with pytest.raises(DataError, match="no such file"):
        import_file("cifar10", tmp_path / "none")


def test_names() -> None:
    with pytest.raises(RecipeError, match="'digits' has nothing to download; known: cifar10, "):
        fetch("digits")
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        verify("cifar1")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("UNDISTILL_CACHE")
    assert cache_dir() == Path(pooch.os_cache("undistill"))
