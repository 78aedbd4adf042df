"""Data from one line of text, as a command line gives it.

open_data                any data: a source, or shards
open_source              images by number only

handwriting              scikit-learn's digits (`toys.handwriting`)
digits                   the drawn toy (`toys.digits`)
mnist-on-cifar:ROOT      digits on CIFAR-10 (`toys.mnist_on_cifar`)
NAME:ROOT                a data set by name (`catalog`): cifar10:ROOT, pets:ROOT ...
folder:PATH              all images below a folder, without labels
classes:PATH             one folder per class
list:FILE                the images that a list names
shards:PATTERN           tar files, which are read in order (`shards.open_shards`)
PATH                     whichever of folder, list and shards it is: shards are tar files, an index .json, a folder
                         that holds nothing but tar files, and URLs
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from prototile.data.catalog import CATALOG, did_you_mean, torchvision_source
from prototile.data.files import class_folders, existing, folder, listed
from prototile.data.shards import SHARD_ENDINGS, Shards, open_shards
from prototile.data.source import Source
from prototile.data.toys import digits, handwriting, mnist_on_cifar

PATHS: dict[str, Callable[[Path], Source]] = {"folder": folder, "classes": class_folders, "list": listed}
EMBEDDED: dict[str, Callable[[str], Source]] = {"digits": digits, "handwriting": handwriting}
NAMES = (*EMBEDDED, "mnist-on-cifar", *CATALOG, *PATHS)


def open_data(spec: str, split: str | None = None, download: bool = False) -> Source | Shards:
    """The data that `spec` names; without a split those to train on."""
    if not _names_shards(spec):
        return open_source(spec, split, download)
    if split is not None:
        raise ValueError(f"{spec} is all one split; leave out {split!r} and open the shards of that split")
    return open_shards(spec.removeprefix("shards:"))


def open_source(spec: str, split: str | None = None, download: bool = False) -> Source:
    """The source that `spec` names; without a split the one to train on."""
    name, colon, rest = spec.partition(":")
    if _names_shards(spec):
        raise ValueError(f"{spec} names shards, which are read in order; here images are needed by number")
    if name in NAMES:
        return _named(name, rest, split, download)
    path = Path(os.path.expanduser(spec))
    if path.exists():
        return _named("folder" if path.is_dir() else "list", spec, split, download)
    if "/" in name or os.sep in name or (colon and len(name) == 1):  # a path, perhaps with a drive's letter
        existing(path, "folder or list", os.path.exists)
    hint = did_you_mean(name, [*NAMES, *os.listdir()])
    raise ValueError(f"{name!r} is neither a data set nor a path that exists{hint}; there are: {', '.join(NAMES)}")


def _names_shards(spec: str) -> bool:
    if spec.startswith("shards:"):
        return True
    if spec.partition(":")[0] in NAMES:
        return False
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        files = [file for file in os.listdir(path) if not file.startswith(".")]
        return files != [] and all(file.endswith(SHARD_ENDINGS) for file in files)
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|pipe:", spec)) or spec.lower().endswith((*SHARD_ENDINGS, ".json"))


def _named(name: str, rest: str, split: str | None, download: bool) -> Source:
    if name in EMBEDDED:
        if rest:
            raise ValueError(f"{name} comes with what is installed: write {name}, not {name}:{rest}")
        return EMBEDDED[name](split or "train")
    if not rest:
        raise ValueError(f"where is it? Write {name}:PATH (for a folder that is called {name}: ./{name})")
    path = Path(os.path.expanduser(rest))
    if name in PATHS:
        if split is not None:
            raise ValueError(f"{path} is all one split; leave out {split!r} and open the folder or list of that split")
        return PATHS[name](path)
    if name == "mnist-on-cifar":
        return mnist_on_cifar(path, split or "train", download=download)
    return torchvision_source(name, path, split, download)
