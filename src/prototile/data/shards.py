"""WebDataset shards: images in tar files, read from front to back, in an order that the seed alone decides.

    open_shards        pattern, folder, file or index -> Shards
    Shards             tar files and how many images each holds
    Part               one worker's share of an epoch
    steps_per_epoch    how many batches every rank gets
    spans              where a stretch of an epoch's line of images lies: Span, Span, ...
    read               the batches of a Part: of ShardSample, from any step on

An epoch is a line: the shards in a random order, begun at a random image. Ranks cut the line into equally long pieces
of whole batches, and each rank's workers cut its piece again; what is left at the end, less than one batch of all
ranks, is dropped. Workers take turns: batch t of a rank comes from worker t mod w. A worker reads its piece in blocks
of `buffer` images and serves each block in a random order. All of this is a function of seed and epoch, so a run that
resumes opens no shard that it is done with. Images mix with their neighbours only: write shards in a random order.

In a shard, files with the same name up to the first dot are a sample: an image and, where there is a `.cls`, its class.

Axes: s shards.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from prototile.data.files import IMAGE_ENDINGS, existing
from prototile.views.randomness import Stream, generator

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, eq=False)
class Shards:
    """Tar files, as paths or as whatever else webdataset opens, and how many images each holds."""

    urls: tuple[str, ...]
    sizes: Int[np.ndarray, " s"]

    @property
    def num_images(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True)
class ShardSample:
    """An image, not yet decoded; `index` is its place in the shards as listed, `id` is shard/key."""

    index: int
    id: str
    data: bytes
    label: int | None


@dataclass(frozen=True)
class Part:
    """One worker's share of an epoch; `batch_size` is a rank's, `buffer` the number of images shuffled at a time."""

    seed: int
    epoch: int
    batch_size: int
    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1
    buffer: int = 1000

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world
        assert 0 <= self.worker < self.workers
        if self.batch_size < 1 or self.buffer < 1:
            raise ValueError(f"batch_size and buffer must be at least 1, got {self.batch_size} and {self.buffer}")


@dataclass(frozen=True)
class Span:
    """The images begin..end (without the last) of one shard."""

    shard: int
    begin: int
    end: int


def open_shards(spec: str) -> Shards:
    """The shards that `spec` names; those of unknown size are read through once, and their size is kept in a cache.

        train-{000000..000009}.tar.gz     a pattern of paths or URLs, as in bash
        folder                            all .tar, .tar.gz and .tgz in it, by name
        train.tar, https://..., pipe:...  one shard
        list.json                         an index {"shardlist": [{"url": ..., "nsamples": ...}, ...]}; its urls are
                                          relative to its folder

    Only a local .tar is counted without reading all of it; for remote shards an index saves that.
    """
    if importlib.util.find_spec("webdataset") is None:
        raise ImportError('shards are read with webdataset: pip install "prototile[shards]"')
    if spec.endswith(".json"):
        listed = _indexed(spec)
    elif _is_local(spec) and Path(spec).expanduser().is_dir():
        listed = [(str(path), None) for path in _tars(Path(spec).expanduser())]
    else:
        listed = [(url, None) for url in _expanded(spec)]
    urls = [_absolute(url) for url, _ in listed]
    sizes = [_size(url) if size is None else size for url, (_, size) in zip(urls, listed, strict=True)]
    return Shards(tuple(urls), np.array(sizes, np.int64))


def steps_per_epoch(num_images: int, batch_size: int, world: int) -> int:
    """How many batches each of `world` ranks gets."""
    steps = num_images // (world * batch_size)
    if steps == 0:
        raise ValueError(
            f"the shards hold {num_images} images, fewer than one batch of {batch_size} on each of {world} ranks: use "
            f"a batch of at most {num_images // world} per rank" + (", or fewer ranks" if world > 1 else "")
        )
    return steps


def spans(sizes: Int[np.ndarray, " s"], seed: int, epoch: int, begin: int, end: int) -> tuple[Span, ...]:
    """Where the places begin..end of an epoch's line lie, in the order of the line."""
    random = generator(seed, Stream.SHARDS, epoch, 0)
    order = random.permutation(len(sizes))
    offset = int(random.integers(sizes.sum()))
    order = np.concatenate([order, order])  # the line is a circle: laid out twice, any piece of it is in one piece
    ends = np.cumsum(sizes[order])
    starts = ends - sizes[order]
    first, last = np.maximum(starts, begin + offset), np.minimum(ends, end + offset)
    touched = np.flatnonzero(first < last)
    return tuple(Span(int(order[i]), int(first[i] - starts[i]), int(last[i] - starts[i])) for i in touched)


def read(shards: Shards, part: Part, start_step: int = 0) -> Iterator[tuple[int, list[ShardSample]]]:
    """The batches of one worker with their steps: start_step + worker, and every `workers`-th from there on.

    So the loader's first worker makes the first batch also where a run resumes. Each step's batch is the same wherever
    the run starts, as long as seed, batch size, world, workers and buffer stay.
    """
    steps = steps_per_epoch(shards.num_images, part.batch_size, part.world)
    if not 0 <= start_step <= steps:
        raise ValueError(f"an epoch of these shards has {steps} steps, so it cannot be resumed at step {start_step}")
    place = (start_step + part.worker) % part.workers
    before = sum(len(range(other, steps, part.workers)) for other in range(place))
    mine = range(place, steps, part.workers)
    done = len(range(place, start_step, part.workers))
    begin = (part.rank * steps + before) * part.batch_size
    samples = _shuffled(shards, part, begin, begin + len(mine) * part.batch_size, done * part.batch_size)
    for step in mine[done:]:
        yield step, list(islice(samples, part.batch_size))


def _shuffled(shards: Shards, part: Part, begin: int, end: int, skip: int) -> Iterator[ShardSample]:
    """The images at begin..end of the line, block by block, each permuted; without the first `skip` so made."""
    first = begin + skip - skip % part.buffer
    names = _names(shards.urls)
    pieces = spans(shards.sizes, part.seed, part.epoch, first, end)
    samples = chain.from_iterable(_read_span(shards, names[piece.shard], piece) for piece in pieces)
    blocks = (
        _permuted(samples, min(part.buffer, end - start), generator(part.seed, Stream.SHARDS, part.epoch, 1 + start))
        for start in range(first, end, part.buffer)
    )
    return islice(chain.from_iterable(blocks), skip % part.buffer, None)


def _permuted(samples: Iterator[ShardSample], size: int, random: np.random.Generator) -> Iterator[ShardSample]:
    block = dict(enumerate(islice(samples, size)))
    return (block.pop(i) for i in random.permutation(size).tolist())


def _read_span(shards: Shards, name: str, span: Span) -> Iterator[ShardSample]:
    """The images of a span; who goes on asking after the last one learns whether the shard's size is right."""
    url, size = shards.urls[span.shard], int(shards.sizes[span.shard])
    offset = int(shards.sizes[: span.shard].sum())
    count = 0
    for position, files in enumerate(_samples(url, span.begin)):
        if span.begin <= position < span.end:
            image = files[_image_ending(url, files)]
            yield ShardSample(offset + position, f"{name}/{files['__key__']}", image, _label(url, files))
        count = position + 1
    if count != size:
        raise ValueError(
            f"the shard {url} has {count} images where {size} were counted: it was changed or is not whole. Where an "
            f"index gives its size, correct `nsamples`; else delete {_cache_file(url)} and open the shards again"
        )


def _names(urls: tuple[str, ...]) -> tuple[str, ...]:
    """What to call each shard: its file's name without ending, or all of the URL where two would have the same name."""
    found = [re.findall(r"([^/\\\s]+?)(?:\.tar\.gz|\.tgz|\.tar)\b", url) for url in urls]
    names = tuple(stems[-1] if stems else url for stems, url in zip(found, urls, strict=True))
    return names if len(set(names)) == len(names) else urls


# A shard's samples.


def _samples(url: str, begin: float) -> Iterator[dict[str, Any]]:
    """The samples of a shard: bytes by ending, and a `__key__`; those before number `begin` without their bytes."""
    from webdataset.tariterators import group_by_keys

    try:
        yield from group_by_keys(_files(url, begin))
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        reason = str(error.args[0] if isinstance(error, ValueError) else error) or repr(error)
        raise ValueError(
            f"cannot read the shard {url}: {reason.splitlines()[0].rstrip(':')}. Fetch it or write it again"
        ) from error


def _files(url: str, begin: float) -> Iterator[dict[str, Any]]:
    """The files in a shard, in the form that webdataset groups into samples; the first ones are passed over unread."""
    from webdataset.gopen import Pipe, gopen
    from webdataset.tariterators import base_plus_ext

    stream: Any = gopen(url)
    piped = isinstance(stream, Pipe)
    key, position = None, -1
    if piped:
        stream.ignore_errors = True  # its command fails as well when we stop reading early
    try:
        with stream, tarfile.open(fileobj=stream, mode="r|*" if piped else "r:*", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # else it keeps every header
                if member.isreg() and not re.match("__[^/]*__($|/)", member.name):
                    name, _ = base_plus_ext(member.name)  # None where there is no ending: belongs to no sample
                    if name not in (None, key):
                        key, position = name, position + 1
                    file = tar.extractfile(member) if position >= begin else None
                    yield {"fname": member.name, "data": file.read() if file else b"", "__url__": url}
    except tarfile.TarError as error:
        if piped and stream.status and stream.status > 0:  # a negative one is our own breaking off
            raise tarfile.ReadError(f"its command ended with exit status {stream.status}") from error
        raise


class _Header(tarfile.TarInfo):
    """A header that must be whole or mark the archive's end: Python takes a broken or missing one for the end too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it breaks off or is damaged ({error})") from error


def _image_ending(url: str, files: dict[str, Any]) -> str:
    """Which file of a sample is the image; `jpg` comes before `mask.jpg`."""
    endings = [f".{name}" for name in files if not name.startswith("__")]
    images = [ending for ending in endings if ending.endswith(IMAGE_ENDINGS)]
    images = [ending for ending in images if ending in IMAGE_ENDINGS] or images
    if len(images) == 1:
        return images[0][1:]
    sample = f"the sample {files['__key__']!r} in {url} has"
    if images:
        raise ValueError(
            f"{sample} {len(images)} images, {' '.join(images)}: write one per sample (files whose names agree up to "
            "the first dot are one sample)"
        )
    raise ValueError(
        f"{sample} no image but {' '.join(endings)}: write its image next to these, under the same name up to the "
        f"first dot; images end in {' '.join(IMAGE_ENDINGS)}"
    )


def _label(url: str, files: dict[str, Any]) -> int | None:
    if "cls" not in files:
        return None
    try:
        return int(files["cls"])
    except ValueError:
        raise ValueError(
            f"the .cls of the sample {files['__key__']!r} in {url} is {files['cls'][:40]!r}, not a whole number"
        ) from None


# Which shards, and how large.


def _indexed(spec: str) -> list[tuple[str, int | None]]:
    from webdataset.gopen import gopen

    index = _absolute(spec)
    try:
        with gopen(index) as stream:
            entries = [(str(entry["url"]), entry.get("nsamples")) for entry in json.loads(stream.read())["shardlist"]]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        form = '{"shardlist": [{"url": ..., "nsamples": ...}, ...]}'
        raise ValueError(f"{spec} is not an index of shards, {form}: {error!r}") from error
    for url, size in entries:
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"in {spec}, nsamples of {url} must be a whole number, got {size!r}")
    folder = os.path.dirname(index)
    return [(os.path.join(folder, url) if _is_local(url) else url, size) for url, size in entries]


def _tars(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    tars = [path for path in files if path.name.endswith(SHARD_ENDINGS)]
    if not tars:
        held = sorted({"folders" if path.is_dir() else path.suffix or path.name for path in files})
        raise ValueError(f"no {' '.join(SHARD_ENDINGS)} in {folder} (found: {' '.join(held[:8]) or 'nothing'})")
    return tars


def _expanded(spec: str) -> list[str]:
    from braceexpand import braceexpand

    if _is_local(spec) and Path(spec).expanduser().exists():
        return [spec]
    try:
        return list(braceexpand(spec))
    except ValueError as error:
        raise ValueError(f"{spec!r} is not a pattern such as train-{{000..009}}.tar: {error}") from error


def _is_local(url: str) -> bool:
    return re.match("[A-Za-z][A-Za-z0-9+.-]+:", url) is None


def _absolute(url: str) -> str:
    """A local path from the root, which must exist; any other URL as it is."""
    return str(existing(Path(url).expanduser().absolute(), "file", os.path.isfile)) if _is_local(url) else url


def _size(url: str) -> int:
    """How many samples a shard holds, from the cache or counted."""
    cache = _cache_file(url)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(cache.read_text())["images"])
    count = 0
    for files in _samples(url, math.inf):
        _image_ending(url, files)
        count += 1
    if count == 0:
        raise ValueError(f"the shard {url} holds no samples, files named as in 0001.jpg and 0001.cls")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as file:
            json.dump({"url": url, "images": count}, file)
        os.replace(file.name, cache)
    return count


def _cache_file(url: str) -> Path:
    version = None
    if _is_local(url):
        stat = os.stat(url)
        version = [stat.st_size, stat.st_mtime_ns]
    name = hashlib.sha256(json.dumps([url, version]).encode()).hexdigest()[:32]
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "prototile" / "shards" / f"{name}.json"
