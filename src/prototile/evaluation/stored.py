"""What frozen networks make of all images of a source, computed once and kept on disk.

    outputs_of(source, outputs, ...)    from the disk where it is there already, computed and put there where not
    fingerprint(source)                 what changes when its images or labels do

Files hold float32 rows, image after image, and are mapped into memory: a million images need little of it. A folder is
named by what decides its numbers, so that nothing that has changed is ever read.

n images, d dims.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prototile.data.source import Source, whole_labels
from prototile.evaluation.features import Crop, Shown, device_of, evaluating

FORMAT = 1
_ABOUT = "about.json"

Outputs = Callable[[Tensor], Mapping[str, Tensor]]  # from images to named rows, one an image


@dataclass(frozen=True, eq=False)
class Stored:
    """Named outputs for the images that could be read, memory-mapped; labels are -1 where there are none."""

    outputs: Mapping[str, Float[Tensor, "n _d"]] = field(repr=False)
    labels: Int[Tensor, " n *classes"] = field(repr=False)
    taken: Int[Tensor, " n"] = field(repr=False)  # their numbers in the source
    bad: tuple[tuple[str, str], ...]  # id and reason
    folder: Path
    reused: bool  # it was there already

    def __len__(self) -> int:
        return len(self.labels)


def outputs_of(
    source: Source,
    outputs: Outputs,
    network: nn.Module,
    *,
    folder: Path,
    key: Mapping[str, Any],
    crop: Crop | None = None,
    batch: int = 256,
    workers: int = 0,
) -> Stored:
    """The `outputs` of `network` (in evaluation mode, without gradients) for all images, in order.

    `key` says in plain values what decides them besides images and crop: the checkpoint's hash, which outputs.
    They come to `folder`, in a folder of their own that is there as a whole or not at all.
    """
    crop = Crop() if crop is None else crop
    about = {"format": FORMAT, "key": dict(key), "crop": asdict(crop), "data": fingerprint(source)}
    text = json.dumps(about, sort_keys=True)
    there = folder / hashlib.sha256(text.encode()).hexdigest()[:24]
    reused = (there / _ABOUT).is_file()
    if not reused:
        shown = Shown(source, crop, batch=batch, workers=workers, device=device_of(network))
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
        try:
            with evaluating(network):
                dims = _written(partial, shown, outputs)
            np.save(partial / "taken.npy", np.array(shown.taken, dtype=np.int64))
            (partial / _ABOUT).write_text(json.dumps(about | {"dims": dims, "bad": shown.bad}))
            _put(partial, there)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return _read(there, source, reused)


def fingerprint(source: Source) -> str:
    """A hash of ids and labels, and of files' sizes and times or of pixels in memory."""
    found = hashlib.sha256()
    for index in range(len(source)):
        found.update(source.stamp(index).encode("utf-8", "surrogateescape") + b"\n")
    if source.labels is not None:
        found.update(whole_labels(source.labels, len(source)).tobytes())
    return found.hexdigest()


def _written(folder: Path, shown: Shown, outputs: Outputs) -> dict[str, int]:
    """Writes the rows of each output as they come; their dims."""
    dims: dict[str, int] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for images in shown:
            for name, rows in outputs(images).items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.f32", "wb"))
                    dims[name] = rows.shape[1]
                files[name].write(rows.float().cpu().contiguous().numpy().tobytes())
    return dims


def _put(partial: Path, there: Path) -> None:
    """Gives the folder its name; another process may have been faster, with the same numbers."""
    os.chmod(partial, 0o755)
    try:
        partial.rename(there)
    except OSError:
        if not (there / _ABOUT).is_file():
            raise
        shutil.rmtree(partial)


def _read(folder: Path, source: Source, reused: bool) -> Stored:
    about = json.loads((folder / _ABOUT).read_text())
    taken = np.load(folder / "taken.npy")
    # mapped copy on write: torch asks for arrays that may be written to
    outputs = {
        name: torch.from_numpy(np.memmap(folder / f"{name}.f32", np.float32, mode="c", shape=(len(taken), dims)))
        for name, dims in about["dims"].items()
    }
    labels = np.full(len(source), -1) if source.labels is None else whole_labels(source.labels, len(source))
    bad = tuple((id, reason) for id, reason in about["bad"])
    return Stored(outputs, torch.from_numpy(labels[taken]), torch.from_numpy(taken), bad, folder, reused)
