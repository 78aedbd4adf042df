"""Data sets by name, in the folders where torchvision puts them.

    name               splits                         labels
    cifar10 cifar100   train test                     class
    mnist              train test                     digit
    fashion-mnist      train test                     class
    inaturalist2018    train val all                  species; train and val need the official JSON files
    places365          train val                      scene; the small images where they are there
    flowers102         train val test                 species
    food101            train test                     dish
    pets               trainval test                  breed
    dtd                train val test                 texture, partition 1
    sun397             all                            scene
    caltech101         all                            object, without the background class
    clevr-count        train val                      number of objects, 3 to 10
    clevr-dist         train val                      distance of the nearest object, 6 ranges
    kitti-dist         train val                      distance of the nearest vehicle, 3 ranges or none
    voc07              train val trainval test        for each of 20 classes 1 present, 0 difficult, -1 absent

The small ones are held in memory, the others are files, sorted by path.
"""

import difflib
import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prototile import distributed
from prototile.data.files import Files, PathLike, existing, image_paths, labelled
from prototile.data.source import Arrays, Source

CLEVR_DISTANCES = (8, 8.5, 9, 9.5, 10)
KITTI_DISTANCES = (0, 8, 20)
KITTI_VEHICLES = ("Car", "Van", "Truck")
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A data set: its splits, where it lies below the root, and what reads it, given root, split and download."""

    splits: tuple[str, ...]
    place: str
    read: Callable[[Path, str, bool], Source]

    @property
    def default_split(self) -> str:
        return "train" if "train" in self.splits else self.splits[0]


def torchvision_source(name: str, root: PathLike, split: str | None = None, download: bool = False) -> Source:
    """The data set of this name below `root`; without a split its `train`, or the first it has."""
    if name not in CATALOG:
        raise ValueError(
            f"no data set is called {name!r}{did_you_mean(name, CATALOG)}; there are: {', '.join(CATALOG)}"
        )
    entry = CATALOG[name]
    split = entry.default_split if split is None else split
    if split not in entry.splits:
        raise ValueError(f"{name} has no split {split!r}; it has: {', '.join(entry.splits)}")
    if download and distributed.world_size() > 1:
        raise ValueError(
            f"{distributed.world_size()} ranks would all download {name} to {root}: download it once, before, in one "
            "process, and open it here without download"
        )
    root = Path(os.path.expanduser(root)) if download else existing(root, "folder", os.path.isdir)
    try:
        return entry.read(root, split, download)
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        if download:
            raise ValueError(f"{name} could not be downloaded to {root}: {reason}") from error
        raise ValueError(
            f"{name} ({split}) is not, or not all, in {root / entry.place}: {reason}. "
            f"Name the folder that holds {entry.place.partition('/')[0]}, or let torchvision fetch it: download=True"
        ) from error


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """For an error that says which choices there are: the nearest one, in brackets, or nothing."""
    nearest = difflib.get_close_matches(name, list(choices), 1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _of(name: str) -> Callable[..., Any]:
    """torchvision's class of this name; its import takes a second, for which other sources need not wait."""
    from torchvision import datasets

    return vars(datasets)[name]


def _in_memory(name: str, root: Path, split: str, download: bool) -> Source:
    data = _of(name)(root, train=split == "train", download=download)
    images, labels = torch.as_tensor(data.data).contiguous(), torch.as_tensor(data.targets)
    return Arrays(images.numpy(), labels.numpy(), tuple(data.classes), name=f"{name.lower()}/{split}")


def _with_splits(name: str, root: Path, split: str, download: bool) -> Source:
    data = _of(name)(root, split=split, download=download, loader=str)
    return _of_torchvision(root, data, tuple(data.classes))


def _sun397(root: Path, split: str, download: bool) -> Source:
    data = _of("SUN397")(root, download=download, loader=str)
    return _of_torchvision(root, data, tuple(data.classes))


def _places365(root: Path, split: str, download: bool) -> Source:
    """The 256 x 256 images, unless only the large ones are there."""
    small, large = ("data_256_standard", "data_large_standard") if split == "train" else ("val_256", "val_large")
    only_large = (root / large).is_dir() and not (root / small).is_dir()
    torchvision_split = "train-standard" if split == "train" else split
    data = _of("Places365")(root, torchvision_split, small=not only_large, download=download, loader=str)
    _needed(Path(data.images_dir))
    return _of_torchvision(root, data, tuple(sorted(data.class_to_idx, key=data.class_to_idx.__getitem__)))


def _inaturalist2018(root: Path, split: str, download: bool) -> Source:
    """From the competition's JSON files, or (`all`) from the folders SUPERCATEGORY/CATEGORY/.

    https://github.com/visipedia/inat_comp/tree/master/2018
    """
    if download:
        _of("INaturalist")(root, version="2018", download=True)
    place = "train_val2018" if (root / "train_val2018").is_dir() else "2018"
    folder = _needed(root / place)
    if split == "all":
        paths = image_paths(folder)
        labels = [int(path.split("/")[1]) for path in paths]
        return _files(root, [f"{place}/{path}" for path in paths], labels, None)
    file = root / f"{split}2018.json"
    if not file.is_file():
        raise ValueError(
            f"which images of iNaturalist 2018 are for {split} stands in {file}, which is missing; torchvision does "
            "not fetch it: put the competition's train2018.json and val2018.json there, or take the split 'all'"
        )
    content = _parsed(file)
    categories = sorted((category["id"], category["name"]) for category in content["categories"])
    number = {identity: index for index, (identity, _) in enumerate(categories)}
    label = {row["image_id"]: number[row["category_id"]] for row in content["annotations"]}
    paths = [f"{place}/{image['file_name'].removeprefix('train_val2018/')}" for image in content["images"]]
    if missing := [image["file_name"] for image in content["images"] if image["id"] not in label]:
        raise ValueError(f"{file} has no annotation of {len(missing)} images, for example {missing[0]}: fetch it again")
    labels = [label[image["id"]] for image in content["images"]]
    return _files(root, paths, labels, tuple(name for _, name in categories))


def _pets(root: Path, split: str, download: bool) -> Source:
    """Lines IMAGE CLASS SPECIES BREED; an image is called after its class (Parkhi et al. 2012)."""
    if download:
        _of("OxfordIIITPet")(root, split=split, download=True)
    place = "oxford-iiit-pet/images"
    _needed(root / place)
    lines = (root / "oxford-iiit-pet" / "annotations" / f"{split}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    breeds = dict(sorted((int(row[1]), row[0].rpartition("_")[0].replace("_", " ")) for row in rows))
    number = {identity: index for index, identity in enumerate(breeds)}
    labels = [number[int(row[1])] for row in rows]
    return _files(root, [f"{place}/{row[0]}.jpg" for row in rows], labels, tuple(breeds.values()))


def _caltech101(root: Path, split: str, download: bool) -> Source:
    if download:
        _of("Caltech101")(root, download=True)
    place = "caltech101/101_ObjectCategories"
    paths = [path for path in image_paths(_needed(root / place)) if not path.startswith("BACKGROUND_Google/")]
    labels, classes = labelled([path.partition("/")[0] for path in paths])
    return Files(root, [f"{place}/{path}" for path in paths], labels, classes)


def _clevr(label: Callable[[Any], int], classes: tuple[str, ...], root: Path, split: str, download: bool) -> Source:
    """Labels made from the objects of each scene (Johnson et al. 2017)."""
    if download:
        _of("CLEVRClassification")(root, split=split, download=True)
    place = f"clevr/CLEVR_v1.0/images/{split}"
    _needed(root / place)
    file = root / "clevr" / "CLEVR_v1.0" / "scenes" / f"CLEVR_{split}_scenes.json"
    scenes = _parsed(file)["scenes"]
    paths = [f"{place}/{scene['image_filename']}" for scene in scenes]
    return _files(root, paths, [label(scene["objects"]) for scene in scenes], classes)


def _object_count(objects: Any) -> int:
    if not 3 <= len(objects) <= 10:
        raise ValueError(f"a scene of CLEVR has 3 to 10 objects, this one {len(objects)}")
    return len(objects) - 3


def _object_distance(objects: Any) -> int:
    """Six ranges of the nearest object's distance from the camera (VTAB, https://arxiv.org/abs/1910.04867)."""
    return bisect_left(CLEVR_DISTANCES, min(each["pixel_coords"][2] for each in objects))


def _kitti(root: Path, split: str, download: bool) -> Source:
    """The training images; four fifths drawn by Philox with seed 0 are `train`, the others `val`."""
    if download:
        _of("Kitti")(root, download=True)
    place = "Kitti/raw/training/image_2"
    names = np.array(sorted(path.stem for path in _needed(root / place).glob("*.png")))
    order = np.random.Generator(np.random.Philox(0)).permutation(len(names))
    cut = 4 * len(names) // 5
    chosen = names[order[:cut] if split == "train" else order[cut:]].tolist()
    files = [root / "Kitti" / "raw" / "training" / "label_2" / f"{name}.txt" for name in chosen]
    labels = [_vehicle_distance(file.read_text()) for file in files]
    return _files(root, [f"{place}/{name}.png" for name in chosen], labels, ("none", "0-8 m", "8-20 m", "over 20 m"))


def _vehicle_distance(objects: str) -> int:
    """Ranges of the depth z of the nearest car, van or truck, 0 where there is none (VTAB's, in VISSL's order)."""
    rows = [line.split() for line in objects.splitlines()]
    nearest = min((float(row[13]) for row in rows if row[0] in KITTI_VEHICLES), default=-np.inf)
    return bisect_left(KITTI_DISTANCES, nearest)


def _voc07(root: Path, split: str, download: bool) -> Source:
    """Labels from ImageSets/Main/CLASS_SPLIT.txt: lines IMAGE and 1, 0 or -1 (Everingham et al. 2010)."""
    if download:
        _of("VOCDetection")(root, year="2007", image_set=split, download=True)
    place = "VOCdevkit/VOC2007/JPEGImages"
    lists = _needed(root / place).parent / "ImageSets" / "Main"
    columns = []
    for name in VOC_CLASSES:
        columns.append(dict(line.split() for line in (lists / f"{name}_{split}.txt").read_text().splitlines()))
        if columns[-1].keys() != columns[0].keys():
            raise ValueError(f"{lists}/{name}_{split}.txt names other images than {VOC_CLASSES[0]}_{split}.txt")
    labels = [[int(column[name]) for column in columns] for name in columns[0]]
    return _files(root, [f"{place}/{name}.jpg" for name in columns[0]], labels, VOC_CLASSES)


def _of_torchvision(root: Path, data: Any, classes: tuple[str, ...]) -> Files:
    """A data set whose `loader` is `str`: it gives paths in place of images."""
    pairs = [data[index] for index in range(len(data))]
    paths = [path.removeprefix(f"{root}{os.sep}").replace(os.sep, "/") for path, _ in pairs]
    return _files(root, paths, [label for _, label in pairs], classes)


def _files(root: Path, paths: list[str], labels: list[Any], classes: tuple[str, ...] | None) -> Files:
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Files(root, [paths[i] for i in order], np.array(labels, dtype=np.int64)[order], classes)


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not whole, or no JSON: {error}; fetch it again") from error


def _needed(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return folder


CATALOG = {
    "cifar10": Entry(("train", "test"), "cifar-10-batches-py", partial(_in_memory, "CIFAR10")),
    "cifar100": Entry(("train", "test"), "cifar-100-python", partial(_in_memory, "CIFAR100")),
    "mnist": Entry(("train", "test"), "MNIST/raw", partial(_in_memory, "MNIST")),
    "fashion-mnist": Entry(("train", "test"), "FashionMNIST/raw", partial(_in_memory, "FashionMNIST")),
    "inaturalist2018": Entry(("train", "val", "all"), "train_val2018", _inaturalist2018),
    "places365": Entry(("train", "val"), "places365_train_standard.txt", _places365),
    "flowers102": Entry(("train", "val", "test"), "flowers-102", partial(_with_splits, "Flowers102")),
    "food101": Entry(("train", "test"), "food-101", partial(_with_splits, "Food101")),
    "pets": Entry(("trainval", "test"), "oxford-iiit-pet", _pets),
    "dtd": Entry(("train", "val", "test"), "dtd/dtd", partial(_with_splits, "DTD")),
    "sun397": Entry(("all",), "SUN397", _sun397),
    "caltech101": Entry(("all",), "caltech101/101_ObjectCategories", _caltech101),
    "clevr-count": Entry(
        ("train", "val"), "clevr/CLEVR_v1.0", partial(_clevr, _object_count, tuple(str(n) for n in range(3, 11)))
    ),
    "clevr-dist": Entry(
        ("train", "val"),
        "clevr/CLEVR_v1.0",
        partial(_clevr, _object_distance, ("up to 8", "8-8.5", "8.5-9", "9-9.5", "9.5-10", "over 10")),
    ),
    "kitti-dist": Entry(("train", "val"), "Kitti/raw/training", _kitti),
    "voc07": Entry(("train", "val", "trainval", "test"), "VOCdevkit/VOC2007", _voc07),
}
