"""Data sets by name, each from a tiny tree in its true layout on disk."""

import json
import pickle
import re

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from prototile.data.catalog import CATALOG, VOC_CLASSES, Entry, torchvision_source
from prototile.data.files import Files

# The modules of torchvision that fetch archives.
ARCHIVES = "caltech cifar clevr dtd flowers102 food101 inaturalist kitti mnist oxford_iiit_pet places365 sun397 voc"


def plant(root, *paths: str) -> None:
    """Images that can be told apart: the n-th is n + 1 pixels wide."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, number + 1), np.uint8)).save(root / path)


def write(root, path: str, content: str | bytes | dict) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict) else content
    (root / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def labels(source) -> dict[str, object]:
    """Label by id; every image is there."""
    assert all(source.image(index).shape[0] == 3 for index in range(len(source)))
    return dict(zip([source.id(index) for index in range(len(source))], source.labels.tolist(), strict=True))


@pytest.fixture
def sums_match(monkeypatch):
    """What stands here is smaller than what torchvision has the checksums of."""
    for module in ("cifar", "flowers102", "places365"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_, **__: True)


@pytest.mark.parametrize(
    ("name", "place", "files", "key", "meta"),
    [
        ("cifar10", "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels", "batches.meta"),
        ("cifar100", "cifar-100-python", ["train"], "fine_labels", "meta"),
    ],
)
def test_cifar(tmp_path, sums_match, name, place, files, key, meta):
    rng = np.random.default_rng(0)
    names = "label_names" if name == "cifar10" else "fine_label_names"
    write(tmp_path, f"{place}/{meta}", pickle.dumps({names: ["cat", "dog"]}))
    pixels = {file: rng.integers(0, 256, (2, 3, 32, 32), np.uint8) for file in files}
    for file, images in pixels.items():
        write(tmp_path, f"{place}/{file}", pickle.dumps({"data": images.reshape(2, -1), key: [1, 0]}))
    source = torchvision_source(name, tmp_path)
    assert len(source) == 2 * len(files)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0] * len(files)
    assert source.id(1) == f"{name}/train/1"
    np.testing.assert_array_equal(source.image(1), pixels[files[0]][1])


@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist(tmp_path, name, place):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    for split, offset in (("train", 0), ("t10k", 1)):
        head = np.array([2051, 3, 28, 28], ">i4").tobytes()
        write(tmp_path, f"{place}/raw/{split}-images-idx3-ubyte", head + (images + offset).tobytes())
        head = np.array([2049, 3], ">i4").tobytes()
        write(tmp_path, f"{place}/raw/{split}-labels-idx1-ubyte", head + bytes([7, 8, 9 - offset]))
    for split, offset in (("train", 0), ("test", 1)):
        source = torchvision_source(name, tmp_path, split)
        assert source.labels.tolist() == [7, 8, 9 - offset]
        assert len(source.classes) == 10
        np.testing.assert_array_equal(source.image(2), np.broadcast_to(images[2] + np.uint8(offset), (3, 28, 28)))


def inaturalist_lists(root) -> None:
    """Two images to train on, one to validate with; identities in no order."""
    categories = [{"id": 2, "name": "ant"}, {"id": 0, "name": "oak"}, {"id": 1, "name": "bee"}]
    for split, rows in (
        ("train", {9: ("Plantae/0/c.jpg", 0), 4: ("Insecta/2/a.jpg", 2)}),
        ("val", {1: ("Insecta/1/b.jpg", 1)}),
    ):
        content = {
            "categories": categories,
            "images": [{"id": i, "file_name": f"train_val2018/{path}"} for i, (path, _) in rows.items()],
            "annotations": [{"image_id": i, "category_id": label} for i, (_, label) in reversed(rows.items())],
        }
        write(root, f"{split}2018.json", content)


@pytest.mark.parametrize("place", ["train_val2018", "2018"])
def test_inaturalist(tmp_path, place):
    plant(tmp_path, *(f"{place}/{path}" for path in ("Insecta/2/a.jpg", "Insecta/1/b.jpg", "Plantae/0/c.jpg")))
    with pytest.raises(ValueError, match=r"for train stands in .*train2018\.json, which is missing.*the split 'all'"):
        torchvision_source("inaturalist2018", tmp_path)
    everything = {f"{place}/Insecta/1/b.jpg": 1, f"{place}/Insecta/2/a.jpg": 2, f"{place}/Plantae/0/c.jpg": 0}
    assert labels(torchvision_source("inaturalist2018", tmp_path, "all")) == everything
    inaturalist_lists(tmp_path)
    train, val = (torchvision_source("inaturalist2018", tmp_path, split) for split in ("train", "val"))
    assert labels(train) == {f"{place}/Insecta/2/a.jpg": 2, f"{place}/Plantae/0/c.jpg": 0}
    assert labels(val) == {f"{place}/Insecta/1/b.jpg": 1}
    assert train.classes == val.classes == ("oak", "bee", "ant")


def test_inaturalist_lists_that_are_not_whole(tmp_path):
    plant(tmp_path, "2018/Insecta/2/a.jpg")
    inaturalist_lists(tmp_path)
    text = (tmp_path / "train2018.json").read_text()
    write(tmp_path, "train2018.json", text[:100])
    with pytest.raises(ValueError, match=r"train2018\.json is not whole, or no JSON: .*; fetch it again"):
        torchvision_source("inaturalist2018", tmp_path)
    content = json.loads(text)
    del content["annotations"][0]
    write(tmp_path, "train2018.json", content)
    with pytest.raises(ValueError, match=r"train2018\.json has no annotation of 1 images, for example train_val2018/"):
        torchvision_source("inaturalist2018", tmp_path)


def test_ranks_do_not_download(tmp_path, monkeypatch):
    monkeypatch.setattr("prototile.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 ranks would all download mnist to .*: download it once, before"):
        torchvision_source("mnist", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("download", [False, True])
def test_the_home_folder(tmp_path, monkeypatch, download):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(CATALOG, "mnist", Entry(("train",), "MNIST", lambda root, *_: Files(root, [str(root)])))
    assert torchvision_source("mnist", "~/data" if download else "~", download=download).id(0).startswith(str(tmp_path))


@pytest.mark.parametrize("size", ["256", "large"])
def test_places(tmp_path, sums_match, size):
    write(tmp_path, "categories_places365.txt", "/a/airfield 0\n/b/bar 1\n/z/zoo 2\n")
    write(tmp_path, "places365_train_standard.txt", "/z/zoo/1.jpg 2\n/a/airfield/2.jpg 0\n")
    write(tmp_path, "places365_val.txt", "Places365_val_1.jpg 1\n")
    with pytest.raises(ValueError, match=r"places365 \(val\) is not, or not all, in .*: no folder .*/val_256"):
        torchvision_source("places365", tmp_path, "val")
    train = f"data_{size}_standard"
    plant(tmp_path, f"{train}/z/zoo/1.jpg", f"{train}/a/airfield/2.jpg", f"val_{size}/Places365_val_1.jpg")
    source = torchvision_source("places365", tmp_path)
    assert labels(source) == {f"{train}/a/airfield/2.jpg": 0, f"{train}/z/zoo/1.jpg": 2}
    assert source.classes == ("/a/airfield", "/b/bar", "/z/zoo")
    assert labels(torchvision_source("places365", tmp_path, "val")) == {f"val_{size}/Places365_val_1.jpg": 1}


def test_flowers(tmp_path, sums_match):
    plant(tmp_path, *(f"flowers-102/jpg/image_0000{i}.jpg" for i in range(1, 5)))
    scipy.io.savemat(tmp_path / "flowers-102" / "imagelabels.mat", {"labels": [[5, 6, 7, 102]]})
    scipy.io.savemat(tmp_path / "flowers-102" / "setid.mat", {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3]]})
    source = torchvision_source("flowers102", tmp_path)
    assert labels(source) == {"flowers-102/jpg/image_00001.jpg": 4, "flowers-102/jpg/image_00004.jpg": 101}
    assert len(source.classes) == 102
    with pytest.raises(ValueError, match="flowers102 has no split 'trainval'; it has: train, val, test"):
        torchvision_source("flowers102", tmp_path, "trainval")


def test_food(tmp_path):
    write(tmp_path, "food-101/meta/train.json", {"sushi": ["sushi/2"], "pie": ["pie/3"]})
    plant(tmp_path, "food-101/images/sushi/2.jpg", "food-101/images/pie/3.jpg")
    source = torchvision_source("food101", tmp_path, "train")
    assert labels(source) == {"food-101/images/pie/3.jpg": 0, "food-101/images/sushi/2.jpg": 1}
    assert source.classes == ("pie", "sushi")


def test_dtd(tmp_path):
    for split, classes in (("train", ("banded", "zigzag")), ("val", ("zigzag",)), ("test", ("banded",))):
        write(tmp_path, f"dtd/dtd/labels/{split}1.txt", "".join(f"{c}/{c}_{split}.jpg\n" for c in reversed(classes)))
        plant(tmp_path, *(f"dtd/dtd/images/{c}/{c}_{split}.jpg" for c in classes))
    expected = {"dtd/dtd/images/banded/banded_train.jpg": 0, "dtd/dtd/images/zigzag/zigzag_train.jpg": 1}
    assert labels(torchvision_source("dtd", tmp_path)) == expected
    assert labels(torchvision_source("dtd", tmp_path, "test")) == {"dtd/dtd/images/banded/banded_test.jpg": 0}


def test_sun(tmp_path):
    write(tmp_path, "SUN397/ClassName.txt", "/a/abbey\n/z/zoo/indoor\n")
    plant(tmp_path, "SUN397/z/zoo/indoor/sun_b.jpg", "SUN397/a/abbey/sun_a.jpg")
    source = torchvision_source("sun397", tmp_path)
    assert labels(source) == {"SUN397/a/abbey/sun_a.jpg": 0, "SUN397/z/zoo/indoor/sun_b.jpg": 1}
    assert source.classes == ("abbey", "zoo/indoor")


def test_pets(tmp_path):
    rows = {"trainval": "pug_dog_2 2 2 1\nBengal_7 1 1 1\n", "test": "# comment\npug_dog_1 2 2 1\nBengal_9 1 1 1\n"}
    for split, text in rows.items():
        write(tmp_path, f"oxford-iiit-pet/annotations/{split}.txt", text)
    plant(
        tmp_path, *(f"oxford-iiit-pet/images/{name}.jpg" for name in ("pug_dog_2", "Bengal_7", "pug_dog_1", "Bengal_9"))
    )
    source = torchvision_source("pets", tmp_path)
    assert labels(source) == {"oxford-iiit-pet/images/Bengal_7.jpg": 0, "oxford-iiit-pet/images/pug_dog_2.jpg": 1}
    assert source.classes == ("Bengal", "pug dog")
    theirs = datasets.OxfordIIITPet(tmp_path, "trainval")
    assert [theirs[index][1] for index in range(2)] == [1, 0]
    assert len(torchvision_source("pets", tmp_path, "test")) == 2


def test_caltech(tmp_path):
    place = "caltech101/101_ObjectCategories"
    plant(tmp_path, *(f"{place}/{name}/image_0001.jpg" for name in ("yin_yang", "BACKGROUND_Google", "Faces")))
    source = torchvision_source("caltech101", tmp_path)
    assert labels(source) == {f"{place}/Faces/image_0001.jpg": 0, f"{place}/yin_yang/image_0001.jpg": 1}
    assert list(source.classes) == datasets.Caltech101(tmp_path).categories


@pytest.mark.parametrize(
    ("distances", "count", "distance"),
    [
        ([12, 9.2, 10.5], 0, 3),
        ([8, 11, 11, 11], 1, 0),
        ([8.01] * 5, 2, 1),
        ([10.0] * 9, 6, 4),
        ([10.1] * 10, 7, 5),
    ],
)
def test_clevr(tmp_path, distances, count, distance):
    plant(tmp_path, "clevr/CLEVR_v1.0/images/val/CLEVR_val_000000.png")
    objects = [{"pixel_coords": [1, 2, d]} for d in distances]
    scenes = {"scenes": [{"image_filename": "CLEVR_val_000000.png", "objects": objects}]}
    write(tmp_path, "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json", scenes)
    for name, label, classes in (("clevr-count", count, 8), ("clevr-dist", distance, 6)):
        source = torchvision_source(name, tmp_path, "val")
        assert labels(source) == {"clevr/CLEVR_v1.0/images/val/CLEVR_val_000000.png": label}
        assert len(source.classes) == classes
    assert torchvision_source("clevr-count", tmp_path, "val").classes[count] == str(len(distances))
    assert datasets.CLEVRClassification(tmp_path, "val")[0][1] == len(distances)


def kitti_object(kind: str, depth: float) -> str:
    return f"{kind} 0.00 0 -1.57 599 156 629 189 2.85 2.63 12.34 0.47 1.49 {depth} -1.56\n"


@pytest.mark.parametrize(
    ("objects", "label"),
    [
        ([], 0),
        ([("Pedestrian", 5)], 0),
        ([("Car", 8), ("Truck", 30)], 1),
        ([("Car", 21), ("Van", 8.01), ("Cyclist", 2)], 2),
        ([("Truck", 20.01), ("DontCare", -1000)], 3),
    ],
)
def test_kitti_distances(tmp_path, objects, label):
    plant(tmp_path, "Kitti/raw/training/image_2/000003.png")
    text = "".join(kitti_object(*each) for each in objects)
    write(tmp_path, "Kitti/raw/training/label_2/000003.txt", text)
    source = torchvision_source("kitti-dist", tmp_path, "val")
    assert labels(source) == {"Kitti/raw/training/image_2/000003.png": label}
    assert len(source.classes) == 4


def test_kitti_splits(tmp_path):
    names = [f"{i:06d}" for i in range(25)]
    plant(tmp_path, *(f"Kitti/raw/training/image_2/{name}.png" for name in names))
    for name in names:
        write(tmp_path, f"Kitti/raw/training/label_2/{name}.txt", "")
    train, val = (set(labels(torchvision_source("kitti-dist", tmp_path, split))) for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 5)
    assert not train & val
    assert sorted(path[-6:-4] for path in val) == ["01", "04", "05", "09", "18"]  # what it has been must stay


def test_voc(tmp_path):
    plant(tmp_path, "VOCdevkit/VOC2007/JPEGImages/000012.jpg", "VOCdevkit/VOC2007/JPEGImages/000005.jpg")
    for name in VOC_CLASSES:
        first, second = {"car": (1, 0), "dog": (-1, 1)}.get(name, (-1, -1))
        write(tmp_path, f"VOCdevkit/VOC2007/ImageSets/Main/{name}_test.txt", f"000012 {first:2d}\n000005 {second:2d}\n")
    source = torchvision_source("voc07", tmp_path, "test")
    place = "VOCdevkit/VOC2007/JPEGImages"
    expected = -np.ones((2, 20), int)
    expected[:, 6] = 0, 1
    expected[0, 11] = 1
    assert labels(source) == {f"{place}/000005.jpg": expected[0].tolist(), f"{place}/000012.jpg": expected[1].tolist()}
    assert source.classes == VOC_CLASSES
    write(tmp_path, "VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt", "000012  1\n")
    with pytest.raises(ValueError, match=r"dog_test\.txt names other images than aeroplane_test"):
        torchvision_source("voc07", tmp_path, "test")


@pytest.mark.parametrize("name", CATALOG)
def test_missing_data(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"{name} (")) as caught:
        torchvision_source(name, tmp_path)
    assert str(tmp_path / CATALOG[name].place) in str(caught.value)
    assert "download=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", CATALOG)
def test_downloads_are_asked_for(tmp_path, name, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network here")

    for module in ARCHIVES.split():
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    monkeypatch.setattr("torchvision.datasets.mnist.URLError", OSError)
    with pytest.raises(ValueError, match=f"{name} could not be downloaded to .*"):
        torchvision_source(name, tmp_path, download=True)


def test_names_splits_and_roots(tmp_path):
    with pytest.raises(
        ValueError, match=r"no data set is called 'cifra10' \(did you mean cifar10\?\); there are: cifar10, "
    ):
        torchvision_source("cifra10", tmp_path)
    with pytest.raises(ValueError, match="caltech101 has no split 'train'; it has: all"):
        torchvision_source("caltech101", tmp_path, "train")
    with pytest.raises(ValueError, match=r"no such folder: .*nowhere"):
        torchvision_source("pets", tmp_path / "nowhere")


def test_files_can_be_handed_to_workers(tmp_path):
    plant(tmp_path, "caltech101/101_ObjectCategories/ant/image_0001.jpg")
    source = pickle.loads(pickle.dumps(torchvision_source("caltech101", tmp_path)))
    assert isinstance(source, Files)
    assert source.image(0).shape == (3, 2, 1)
