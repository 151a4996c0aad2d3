"""Fetch an archive once: resumed after an interruption, checked, and unpacked without trusting what is in it.

Everything is written under a temporary name and moved into place when whole: a file or folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from email.message import Message
from http.client import HTTPException
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mmseqvae.files import write_text

BLOCK = 1 << 16  # bytes read at a time
TIMEOUT = 30.0  # seconds without a byte before the connection counts as lost


def download(url: str, path: Path, sha256: str | None = None, md5: str | None = None) -> Path:
    """Fetch `url` to `path` and return `path`; a file that is already there is kept as it is.

    What arrived is kept as `<name>.part`, so the next call goes on where this one stopped, or starts again where the
    server cannot resume or says that the file is another one by now (its ETag or date, kept beside it). `sha256`,
    `md5`: hexadecimal digests that the whole file must have, as they are published; MD5 tells a damaged file, not a
    forged one.

    Raises ConnectionError when the server cannot be reached or stops early, ValueError when the digest is wrong.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mmseqvae"})
    version = path.with_name(path.name + ".version")
    if have:
        request.add_header("Range", f"bytes={have}-")
        if version.exists():
            request.add_header("If-Range", version.read_text(encoding="utf-8"))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            resumed = answer.status == 206
            have = have if resumed else 0
            size = answer.headers.get("Content-Length")  # absent where the server packs the archive as it sends it
            total = None if size is None else have + int(size)
            bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=f"download {path.name}")
            with open(part, "ab" if resumed else "wb") as file, bar:
                if not resumed:  # the part is empty now: what it will hold is of this version
                    _note(answer.headers, version)
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the part is longer than the file, so it belongs to something else
            part.unlink()
            version.unlink(missing_ok=True)
            return download(url, path, sha256, md5)
        raise ConnectionError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{url}: the download stopped ({error}); run again to go on from there") from error
    arrived = part.stat().st_size
    if total is not None and arrived < total:
        raise ConnectionError(
            f"{url}: the download stopped at {arrived} of {total} bytes; run again to go on from there"
        )
    for name, kind, wanted in (("SHA-256", "sha256", sha256), ("MD5", "md5", md5)):
        if wanted is not None and (found := file_digest(part, kind)) != wanted.lower():
            part.unlink()
            version.unlink(missing_ok=True)
            raise ValueError(
                f"{url}: {name} is {found}, expected {wanted}; the file was removed, run again to fetch it anew"
            )
    os.replace(part, path)
    version.unlink(missing_ok=True)
    return path


def hold_to_first(file: Path, noted: Path) -> Path:
    """For files of which no digest is published: write down that of the first download, which holds from then on.

    noted: where it is kept, unverified. Returns `file`. Raises ValueError, and leaves both, where it is another by now.
    """
    found = file_sha256(file)
    if not noted.exists():
        write_text(noted, f"{found}  {file.name}\n")
    elif noted.read_text(encoding="utf-8").split()[:1] != [found]:
        raise ValueError(
            f"{file}: is not the file that was downloaded first: delete it to fetch it anew, and {noted} as well to "
            "take what comes"
        )
    return file


def _note(headers: Message, version: Path) -> None:
    """Keep what tells this file from another under its address: a strong ETag, else its date; no file where neither."""
    tags = (headers.get(name) for name in ("ETag", "Last-Modified"))
    strong = next((tag for tag in tags if tag and not tag.startswith("W/")), None)
    if strong:
        write_text(version, strong)
    else:
        version.unlink(missing_ok=True)


def extract(archive: Path, folder: Path) -> Path:
    """Unpack `archive`, a tar or .7z, to `folder`, which must not exist, and return `folder`.

    Members that would land outside of the folder, and links and devices, are refused (Python's "data" filter, PEP 706).
    Raises ValueError, and removes `archive`, where it is damaged or unsafe; ModuleNotFoundError where a .7z comes
    without the extra `sevenzip`.
    """
    if archive.suffix == ".7z":
        return _extract_7z(archive, folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, unit=" files", desc=f"unpack {archive.name}"):
                tar.extract(member, part, filter="data")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        shutil.rmtree(part)
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk or a missing permission, not the archive's fault
        archive.unlink()
        raise ValueError(
            f"{archive}: cannot be unpacked ({error}); it was removed, run again to fetch it anew"
        ) from error
    os.replace(part, folder)
    return folder


def verify(folder: Path, checksums: Path) -> list[str]:
    """The file names listed in `checksums` (lines of `sha256sum`), after checking that `folder` holds each unchanged.

    Raises ValueError that names the folder and the first missing or changed files.
    """
    names, bad = [], []
    for line in checksums.read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        names.append(name)
        file = folder / name
        if not file.is_file():
            bad.append(f"{name} (missing)")
        elif file_sha256(file) != digest:
            bad.append(f"{name} (changed)")
    if bad:
        shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{folder}: {len(bad)} of {len(names)} files are not those of {checksums.name}: {shown}")
    return names


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    return file_digest(path, "sha256")


def file_digest(path: Path, kind: str) -> str:
    """Hexadecimal digest of the file's bytes, `kind` as in hashlib."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _extract_7z(archive: Path, folder: Path) -> Path:
    try:
        import py7zr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{archive} is a .7z: pip install 'mmseqvae[sevenzip]', or unpack it yourself and pass --data-dir",
            name="py7zr",
        ) from error
    from py7zr.exceptions import AbsolutePathError, ArchiveError

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with py7zr.SevenZipFile(archive) as packed:
            for member in packed.files:
                inside = PurePosixPath(member.filename.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts or not (member.is_file or member.is_directory):
                    raise ArchiveError(f"member {member.filename!r} is a link or leads out of the folder")
            packed.extractall(part)
    except (ArchiveError, AbsolutePathError, LZMAError, EOFError) as error:
        shutil.rmtree(part)
        archive.unlink()
        raise ValueError(
            f"{archive}: cannot be unpacked ({error}); it was removed, run again to fetch it anew"
        ) from error
    os.replace(part, folder)
    return folder
