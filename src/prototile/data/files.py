"""Images that are files, and how to find them: in a folder, in one folder per class, in a list.

    Files             the source: paths below a root, with labels where there are any
    folder            every image below a folder, without labels
    class_folders     the same; the first folder below the root is the class
    listed            the images that a list names (.txt .lst .csv .tsv), with labels where it has them
    Strings           many strings in one piece of memory
    image_paths       what `folder` finds; `labelled`: labels from words; `existing`: a path, or a helpful error

Axes: n images, c classes.
"""

import csv
import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from prototile.data import images
from prototile.data.source import Source

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif",
)  # fmt: skip
LIST_ENDINGS = (".txt", ".lst", ".csv", ".tsv")
PATH_COLUMNS = ("path", "image", "file", "filename")
SPLITS = ("train", "val", "valid", "validation", "test")
PROBED = 100  # rows of a list whose files are looked for
DIGITS = 18  # of a label that is a number: so many fit 64 bits

PathLike = str | os.PathLike[str]


class Strings(Sequence[str]):
    """Many strings in two tensors: forked workers share the memory, for there are no references to count in it, and
    others do, for tensors are sent to them as handles.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8))
        self._ends = torch.tensor([len(string) for string in encoded], dtype=torch.int64).cumsum(0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].numpy().tobytes())


class Files(Source):
    """Images in files; `paths` are relative to `root` (or absolute) and are the images' ids."""

    def __init__(
        self,
        root: PathLike,
        paths: Sequence[str],
        labels: Int[np.ndarray, " n *c"] | None = None,
        classes: tuple[str, ...] | None = None,
    ):
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"there are {len(paths)} paths but {len(labels)} labels")
        self._root = os.path.abspath(root)
        self._paths = Strings(paths)
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return images.read(os.path.join(self._root, self._paths[index]))

    def id(self, index: int) -> str:
        return self._paths[index]

    def stamp(self, index: int) -> str:
        try:
            found = os.stat(os.path.join(self._root, self._paths[index]))
        except OSError:
            return self._paths[index]  # who reads it will say what is wrong
        return f"{self._paths[index]} {found.st_size} {found.st_mtime_ns}"


def folder(root: PathLike) -> Files:
    """Every image below this folder, however deep, sorted by path; hidden files and folders are left out."""
    root = existing(root, "folder", os.path.isdir)
    return Files(root, image_paths(root))


def class_folders(root: PathLike) -> Files:
    """`root/CLASS/.../image`: classes are sorted as strings; images that lie beside the class folders are left out."""
    root = existing(root, "folder", os.path.isdir)
    paths = [path for path in image_paths(root) if "/" in path]
    if not paths:
        raise ValueError(f"{root} has images but no folders of classes; to open it without labels use folder:{root}")
    names = [path.partition("/")[0] for path in paths]
    folders = {entry.name for entry in os.scandir(root) if not entry.name.startswith(".") and _is_folder(entry)}
    if all(name.lower() in SPLITS for name in folders):
        splits = sorted(folders, key=lambda name: SPLITS.index(name.lower()))
        raise ValueError(f"{root} holds the splits {' and '.join(splits)}: open classes:{root / splits[0]}")
    if empty := sorted(folders - set(names)):
        raise ValueError(f"no images in the class folder(s) {', '.join(empty[:5])} of {root}; fill or remove them")
    return Files(root, paths, *labelled(names))


def listed(file: PathLike, root: PathLike | None = None) -> Files:
    """The images that a list names, in its order; relative paths are below `root`, by default the list's folder.

    .txt, .lst: one path a line, or path, TAB, label; empty lines and lines that begin with # are skipped.
    .csv, .tsv: a header with a column `path` (or `image`, `file`, `filename`) and, if there are labels, `label`.
    Labels that are all whole numbers are kept; others are words: the sorted words are the classes.
    """
    file = existing(file, "list", os.path.isfile)
    if file.suffix.lower() not in LIST_ENDINGS:
        raise ValueError(f"a list of images ends in {' '.join(LIST_ENDINGS)}, not as {file.name}")
    root = existing(file.parent if root is None else root, "folder", os.path.isdir)
    rows = _read_table(file) if file.suffix.lower() in (".csv", ".tsv") else _read_lines(file)
    if not rows:
        raise ValueError(f"the list {file} names no images")
    paths = [row.path.replace(os.sep, "/").removeprefix("./") for row in rows]
    _probe(paths, root, file)
    words = [row.label for row in rows if row.label is not None]
    if not words:
        return Files(root, paths)
    if len(words) < len(rows):
        raise ValueError(f"only {len(words)} of the {len(rows)} rows of {file} have a label; give all or none")
    if all(re.fullmatch(r"[+-]?\d+", word) for word in words):
        for row, word in zip(rows, words, strict=True):
            if len(word.lstrip("+-")) > DIGITS:
                raise ValueError(f"{file}, line {row.line}: a label has at most {DIGITS} digits, got {word}")
        return Files(root, paths, np.array(words, dtype=np.int64))
    return Files(root, paths, *labelled(words))


def image_paths(root: PathLike) -> list[str]:
    """The images below a folder: relative paths with forward slashes, sorted; links are followed, not in circles."""
    root = existing(root, "folder", os.path.isdir)
    paths = sorted(path for path in _walk(str(root), "", ()) if path.lower().endswith(IMAGE_ENDINGS))
    if not paths:
        endings = Counter(Path(path).suffix.lower() or "no ending" for path in _walk(str(root), "", ()))
        found = ", ".join(f"{count} x {ending}" for ending, count in endings.most_common(8)) or "it is empty"
        shards = f". Tar files are opened as shards:{root}" if endings.keys() & {".tar", ".tgz", ".gz"} else ""
        raise ValueError(f"no images below {root} (found: {found}); images end in {' '.join(IMAGE_ENDINGS)}{shards}")
    return paths


def labelled(words: Sequence[str]) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Labels and classes of one word for each image: the classes are the sorted words."""
    classes = tuple(sorted(set(words)))
    number = {word: index for index, word in enumerate(classes)}
    return np.array([number[word] for word in words], dtype=np.int64), classes


def existing(path: PathLike, kind: str, check: Callable[[PathLike], bool]) -> Path:
    """The path, or an error that says where it ends and what is there instead."""
    path = Path(os.path.expanduser(path))
    if check(path):
        return path
    if path.exists():
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'file'}, but a {kind} is needed here")
    missing, parent = path.name, path.parent
    while not parent.exists():
        missing, parent = parent.name, parent.parent
    there = sorted(os.listdir(parent)) if parent.is_dir() else []
    nearest = difflib.get_close_matches(missing, there, 1)
    hint = f"did you mean {parent / nearest[0]}?" if nearest else f"{parent} has no {missing}"
    raise ValueError(f"no such {kind}: {path} ({hint})")


def _walk(root: str, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files below `root/below`, relative to `root`; `above` are the folders on the way, to notice circles."""
    try:
        status = os.stat(os.path.join(root, below))
        entries = list(os.scandir(os.path.join(root, below)))
    except OSError as error:
        raise ValueError(f"cannot list the folder {os.path.join(root, below)}: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(root, f"{below}{entry.name}/", (*above, here))
        else:
            yield below + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class _Row(NamedTuple):
    """Of a list; `line` is where it begins."""

    line: int
    path: str
    label: str | None


def _read_lines(file: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, *labels = (part.strip() for part in line.split("\t"))
        if len(labels) > 1 or not all((path, *labels)):
            raise ValueError(f"{file}, line {number}: expected PATH or PATH, TAB, LABEL, got {line.strip()!r}")
        rows.append(_Row(number, path, labels[0] if labels else None))
    return rows


def _read_table(file: Path) -> list[_Row]:
    table = _cells(file)
    _, names = next(table, (1, []))
    header = [name.lower() for name in names]
    column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    if column is None:
        names = ", ".join(header) or "none"
        raise ValueError(f"{file} needs a header with a column `path` (or image, file, filename); it has: {names}")
    if "label" not in header and len(header) > 1:
        raise ValueError(f"{file} has no column `label` but: {', '.join(header)}; rename one, or keep the paths only")
    label = header.index("label") if "label" in header else None
    rows = []
    for line, cells in table:
        if len(cells) != len(header) or not cells[column] or (label is not None and not cells[label]):
            raise ValueError(f"{file}, line {line}: expected {', '.join(header)}, got {cells}")
        rows.append(_Row(line, cells[column], None if label is None else cells[label]))
    return rows


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not empty, each with the line it begins in."""
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, [cell.strip() for cell in row]
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {line}: {error}; close or remove the quote that stands there") from error


def _lines(file: Path) -> io.StringIO:
    try:
        return io.StringIO(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _probe(paths: list[str], root: Path, file: Path) -> None:
    """Are the files where the list says? Only the first are looked for: a list may be long, and disks far away."""
    probed = paths[:PROBED]
    if any((root / path).exists() for path in probed):
        return
    hint = "; a label is separated by a TAB" if re.search(r"[ ,;]\S+$", probed[0]) else ""
    raise ValueError(
        f"none of the first {len(probed)} files that {file} names exists, for example {root / probed[0]}; "
        f"relative paths are taken relative to {root}{hint}"
    )
