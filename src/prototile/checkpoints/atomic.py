"""Files that are there as a whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets `write` fill a file beside `path` that takes its place when all of it is on the disk.

    Where that fails, the partial file is removed, and what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # as an ordinary file: those of `mkstemp` are for their owner only
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if _is_full(error):
            kept = f"; the previous {path.name} is kept" if path.exists() else ""
            raise OSError(
                errno.ENOSPC, f"there is no room to write {path.name}: free some in {path.parent}{kept}", str(path)
            ) from error
        raise
    _sync_folder(path.parent)


def remove_partial(folder: Path) -> None:
    """Removes what writes that were killed have left in a folder."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _is_full(error: BaseException) -> bool:
    """Whether a disk or quota is full; torch's writer hides the reason behind an error of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
