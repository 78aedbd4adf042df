"""Any checkpoint, of any project that is known, or of a run of one's own."""

from pathlib import Path
from typing import get_args

from prototile.checkpoints import own
from prototile.checkpoints.foreign import LAYOUTS
from prototile.checkpoints.foreign.filling import Misfit
from prototile.checkpoints.foreign.importing import imported
from prototile.checkpoints.imported import Choice, Imported
from prototile.checkpoints.reading import read

_ROOM = 2**24  # bytes that weights may have beyond the file's: tensors under two names are stored once


def load(path: str | Path, *, network: Choice = "evaluated") -> Imported:
    """The network of a checkpoint that its project evaluates; or its teacher, or its student. Own runs are read too:
    their checkpoints, their folder, and the folder `model` in it; of one that was fine-tuned the backbone.

    Nothing in the file is executed. Every key is used, or named in the layout's list of what is left out; otherwise
    the file is refused with a ValueError.
    """
    if network not in get_args(Choice):
        raise ValueError(f"network must be one of {', '.join(get_args(Choice))}, got {network!r}")
    path = Path(path)
    if path.is_dir():
        if (found := own.file_of(path)) is None:
            inside = [each for each in sorted(path.iterdir()) if each.is_dir() and own.file_of(each) is not None]
            what = f"{inside[0]}, a run that is in it" if inside else "the folder of a run"
            raise ValueError(f"{path} is no folder of a run: give a checkpoint's file, or {what}")
        path = found
    try:
        if own.looks_exported(path):
            return own.of_export(path.parent, network)
        contents = read(path)
        room = 2 * path.stat().st_size + _ROOM
        if own.is_own(contents):
            return own.of_checkpoint(contents, network, room)
        return imported(contents, LAYOUTS, network, room)
    except Misfit as error:
        raise ValueError(f"{path}: {error}") from error
