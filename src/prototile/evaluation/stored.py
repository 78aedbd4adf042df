"""What frozen networks make of all images of a source, computed once and kept on disk.

    outputs_of(source, outputs, ...)    from the disk where it is there already, computed and put there where not
    fingerprint(source)                 what changes when its images or labels do
    weights_hash(network)               what changes when its weights do

Files hold float32 rows, image after image, and are mapped into memory: a million images need little of it. A folder is
named by what decides its numbers, so that nothing that has changed is ever read. Ranks share the work, each a stretch
of the images; they need one folder that all of them see.

n images, d dims.
"""

import hashlib
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prototile import distributed
from prototile.data.source import Source, whole_labels
from prototile.evaluation.features import Crop, Shown, device_of, evaluating, none_readable

FORMAT = 1
_ABOUT = "about.json"

Outputs = Callable[[Tensor, Tensor], Mapping[str, Tensor]]  # from images and their numbers to named rows, one an image


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
    data: str | None = None,
) -> Stored:
    """The `outputs` of `network` (in evaluation mode, without gradients) for all images, in order.

    `key` says in plain values what decides them besides images and crop: the checkpoint's hash, which outputs.
    They come to `folder`, in a folder of their own that is there as a whole or not at all. `data` is the source's
    fingerprint, for those who know it already: it takes a look at every file.
    """
    crop = Crop() if crop is None else crop
    about = {"format": FORMAT, "key": dict(key), "crop": crop.as_dict(), "data": data or fingerprint(source)}
    text = json.dumps(about, sort_keys=True)
    there = folder / hashlib.sha256(text.encode()).hexdigest()[:24]
    reused = distributed.gather_objects((there / _ABOUT).is_file())[0]
    if not reused:
        options = {"batch": batch, "workers": workers, "device": device_of(network)}
        with evaluating(network):
            _compute(there, about, lambda part: Shown(source, crop, part=part, **options), len(source), outputs)
    return _read(there, source, reused)


def fingerprint(source: Source) -> str:
    """A hash of ids and labels, and of files' sizes and times or of pixels in memory."""
    found = hashlib.sha256()
    for index in range(len(source)):
        found.update(source.stamp(index).encode("utf-8", "surrogateescape") + b"\n")
    if source.labels is not None:
        found.update(whole_labels(source.labels, len(source)).tobytes())
    return found.hexdigest()


def weights_hash(network: nn.Module) -> str:
    """Of all weights and buffers, by name."""
    found = hashlib.sha256()
    for name, x in network.state_dict().items():
        found.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class _Part(NamedTuple):
    """What a rank has written, or why it could not."""

    dims: dict[str, int]
    taken: list[int]
    bad: list[tuple[str, str]]
    error: str | None = None


def _compute(
    there: Path, about: Mapping[str, Any], show: Callable[[range], Shown], images: int, outputs: Outputs
) -> None:
    """Puts all rows into a folder beside, each rank its own, which then gets its name."""
    rank, ranks = distributed.rank(), distributed.world_size()
    partial = Path(distributed.gather_objects(_partial(there.parent) if rank == 0 else "")[0])
    try:
        parts = _parts(partial, show(range(rank * images // ranks, (rank + 1) * images // ranks)), outputs, rank)
        if rank == 0:
            taken, bad = ([x for part in parts for x in getattr(part, name)] for name in ("taken", "bad"))
            if not taken:
                raise none_readable(images, bad)
            dims = {name: size for part in parts for name, size in part.dims.items()}
            for name in dims:
                _joined(partial, name, ranks)
            np.save(partial / "taken.npy", np.array(taken, dtype=np.int64))
            (partial / _ABOUT).write_text(json.dumps({**about, "dims": dims, "bad": bad}))
            _put(partial, there)
        elif not any(part.taken for part in parts):
            raise none_readable(images, parts[0].bad)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    distributed.gather_objects(None)  # the folder is there for all


def _partial(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(dir=folder, prefix=".partial-")


def _parts(folder: Path, shown: Shown, outputs: Outputs, rank: int) -> list[_Part]:
    """Writes this rank's rows; what all ranks have written, or an error on all of them where one has failed."""
    if distributed.world_size() == 1:
        return [_Part(_written(folder, shown, outputs, rank), shown.taken, shown.bad)]
    try:
        own = _Part(_written(folder, shown, outputs, rank), shown.taken, shown.bad)
    except Exception:
        own = _Part({}, [], [], traceback.format_exc())
    parts = distributed.gather_objects(own)
    for number, part in enumerate(parts):
        if part.error is not None:
            raise RuntimeError(f"rank {number} could not encode its images:\n{part.error}")
    return parts


def _written(folder: Path, shown: Shown, outputs: Outputs, rank: int) -> dict[str, int]:
    """Writes the rows of each output as they come; their dims."""
    dims: dict[str, int] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for images in shown:
            numbers = torch.tensor(shown.taken[-len(images) :], device=images.device)
            for name, rows in outputs(images, numbers).items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.f32.{rank}", "wb"))
                    dims[name] = rows.shape[1]
                files[name].write(rows.float().cpu().contiguous().numpy().tobytes())
    return dims


def _joined(folder: Path, name: str, ranks: int) -> None:
    """The ranks' files as one, in order."""
    parts = [part for rank in range(ranks) if (part := folder / f"{name}.f32.{rank}").is_file()]
    parts[0].rename(folder / f"{name}.f32")
    with open(folder / f"{name}.f32", "ab") as whole:
        for part in parts[1:]:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole, 2**24)
            part.unlink()


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
