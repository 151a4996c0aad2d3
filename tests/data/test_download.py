"""Downloads against a server in this process: whole, cut short, resumed, changed, and archives that mean harm."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mmseqvae.data.download import download, extract, verify

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends `content`, at most `allowed` bytes an answer; `ranges` False ignores Range; keeps the Range headers seen.

    version: its header that tells one file from another, and the value.
    """

    content = CONTENT
    allowed = len(CONTENT)
    version: tuple[str, str] | None = None
    ranges = True
    sized = True

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.seen.append(wanted)
        content, version = self.server.content, self.server.version
        known = self.headers["If-Range"]
        same = known is None or (version is not None and known == version[1])
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges and same else 0
        if self.path != "/data.bin" or start >= len(content):
            self.send_error(404 if self.path != "/data.bin" else 416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if version is not None:
            self.send_header(*version)
        if self.server.sized:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.allowed])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, sized: bool) -> None:
    server.sized = sized
    path = tmp_path / "new" / "data.bin"
    for _ in range(2):
        assert download(server.url, path, DIGEST) == path
    assert path.read_bytes() == CONTENT
    assert server.seen == [None]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_cut_short_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    path = tmp_path / "data.bin"
    server.ranges, server.allowed = ranges, 100_000
    with pytest.raises(ConnectionError, match=r"data\.bin: the download stopped.* run again"):
        download(server.url, path, DIGEST)
    assert not path.exists()
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENT[:100_000]
    server.allowed = len(CONTENT)
    download(server.url, path, DIGEST)
    assert server.seen == [None, "bytes=100000-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "value"), [("ETag", '"a"'), ("Last-Modified", "Thu, 26 Nov 2026 04:00:00 GMT")])
@pytest.mark.parametrize("changed", [False, True])
def test_a_part_is_joined_to_the_rest_of_the_same_file_only(
    server: Server, tmp_path: Path, name: str, value: str, changed: bool
) -> None:
    path = tmp_path / "data.bin"
    server.allowed, server.version = 100_000, (name, value)
    with pytest.raises(ConnectionError, match="run again"):
        download(server.url, path)
    server.allowed = len(CONTENT)
    if changed:
        server.content, server.version = CONTENT[::-1], (name, value.replace("a", "b").replace("26 Nov", "27 Nov"))
    assert download(server.url, path).read_bytes() == server.content
    assert list(tmp_path.iterdir()) == [path]


def test_a_weak_tag_does_not_tell_files_apart(server: Server, tmp_path: Path) -> None:
    server.allowed, server.version = 100_000, ("ETag", 'W/"a"')
    with pytest.raises(ConnectionError, match="run again"):
        download(server.url, tmp_path / "data.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin.part"]


def test_a_part_of_something_longer_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(bytes(len(CONTENT) + 1))
    assert download(server.url, tmp_path / "data.bin", DIGEST).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"SHA-256 is {DIGEST}, expected 00"):
        download(server.url, tmp_path / "data.bin", "00")
    assert list(tmp_path.iterdir()) == []
    # A part of another file is noticed by the checksum too, and the next call starts afresh.
    (tmp_path / "data.bin.part").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="run again"):
        download(server.url, tmp_path / "data.bin", DIGEST)
    assert download(server.url, tmp_path / "data.bin", DIGEST).read_bytes() == CONTENT


def test_an_answer_of_failure_and_no_answer_name_the_address(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="elsewhere: the server answered 404"):
        download(server.url.replace("data.bin", "elsewhere"), tmp_path / "data.bin")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/x: the download stopped"):
        download("http://127.0.0.1:9/x", tmp_path / "data.bin")  # the discard port: nobody listens


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked_whole(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"top/one": b"1", "top/two": CONTENT})
    (tmp_path / "out.part").mkdir()  # what an interrupted call left
    (tmp_path / "out.part" / "stale").touch()
    folder = extract(archive, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (folder / "top").iterdir()} == {"one": b"1", "two": CONTENT}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "out"]
    assert [path.name for path in folder.iterdir()] == ["top"]


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "link"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name if name != "/escaped" else "../" + name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"a\.tar: cannot be unpacked"):
        extract(archive, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


@pytest.mark.parametrize("damage", [lambda data: data[:-50_000], lambda data: b"no archive", lambda data: data[:9]])
def test_a_damaged_archive_is_removed(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    archive = archive_of(tmp_path / "a.tar.gz", {"one": CONTENT})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match="run again to fetch it anew"):
        extract(archive, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verify_names_missing_and_changed_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    names = [f"file {number}" for number in range(7)]
    for name in names:
        (folder / name).write_text(name)
    sums = tmp_path / "sums.sha256"
    sums.write_text("".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in names))
    (folder / "extra").touch()
    assert verify(folder, sums) == names
    (folder / names[2]).write_text("other")
    (folder / names[4]).unlink()
    with pytest.raises(ValueError, match=r"2 of 7 files .* sums.sha256: file 2 \(changed\), file 4 \(missing\)$"):
        verify(folder, sums)
