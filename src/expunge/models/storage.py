"""Files that are whole or absent: a temporary neighbour is written, synced and renamed into place.

The commit point is one `rename` within one folder, which file systems make atomic. Whatever dies before it leaves a
name that begins with `TEMPORARY`, which no reader looks at and the next writer removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from expunge.errors import ResourceError

TEMPORARY = ".tmp-"
_FULL: dict[int | None, str] = {errno.ENOSPC: "The disk is full.", errno.EDQUOT: "The disk quota is used up."}


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk into ResourceError; other errors pass, with `where` for the name of a temporary neighbour."""
    try:
        yield
    except Exception as error:
        if (what := _FULL.get(_error_number(error))) is not None:
            fix = "Free some space or choose another folder; nothing half-written was left."
            raise ResourceError(what, str(where), fix) from error
        if isinstance(error, OSError) and Path(str(error.filename)).name.startswith(TEMPORARY):
            error.filename = str(where)
        raise


def _error_number(error: Exception) -> int | None:
    """The system's error number; safetensors and tokenizers, written in Rust, tell it only inside their message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` if the block ends well and vanishes if it does not.

    A folder already at `target` is replaced. One writer per parent folder is assumed.

    Raises:
        ResourceError: the disk is full.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=target.parent))
        try:
            yield work
            _sync_tree(work)
            work.chmod(0o777 & ~_umask())  # mkdtemp gives 0700, an ordinary folder is wanted
            _swap(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _sync(target.parent)


def _swap(work: Path, target: Path) -> None:
    """Rename `work` to `target`, first setting aside and at last deleting what was there."""
    old = work.with_name(work.name + "-old")
    if target.exists():
        target.rename(old)
    try:
        work.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with LF line ends, so that a reader sees the old file or the new one, never a part.

    Raises:
        ResourceError: the disk is full.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        work = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            work.chmod(0o666 & ~_umask())
            work.replace(path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file below `folder`, by its relative POSIX path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def model_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of every file that a model in `folder` is read from, by name, sorted."""
    names = model_files({path.name: "" for path in folder.iterdir() if path.is_file()})
    return {name: sha256(folder / name) for name in sorted(names)}


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle for a folder's entries
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def weight_files(hashes: Mapping[str, str]) -> dict[str, str]:
    """Those of a checkpoint's hashes that are of weights; what lies in folders below it is none of it."""
    return _ending(hashes, ".safetensors")


def beside_files(hashes: Mapping[str, str]) -> dict[str, str]:
    """Those of a checkpoint's hashes that are of its config, tokenizer and templates."""
    return _ending(hashes, ".json", ".txt", ".model", ".jinja")


def model_files(hashes: Mapping[str, str]) -> dict[str, str]:
    """Those of a folder's hashes that a model is read from: weights and what is beside them."""
    return weight_files(hashes) | beside_files(hashes)


def _ending(hashes: Mapping[str, str], *ends: str) -> dict[str, str]:
    return {name: digest for name, digest in hashes.items() if name.endswith(ends) and "/" not in name}


def weights_hash(hashes: Mapping[str, str]) -> str:
    """One hash for all weight files of a checkpoint."""
    return " ".join(digest for _, digest in sorted(weight_files(hashes).items()))
