"""Opening: each form of the text, and what mistakes are answered."""

import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from prototile.data import opening
from prototile.data.opening import open_data, open_source
from prototile.data.shards import Shards
from prototile.data.source import Arrays


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "pictures" / name / "a.png")
    (tmp_path / "list.txt").write_text("pictures/cats/a.png\tcat\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "images", "classes"),
    [
        ("folder:pictures", 2, None),
        ("classes:pictures", 2, ("cats", "dogs")),
        ("list:list.txt", 1, ("cat",)),
        ("pictures", 2, None),
        ("./pictures/", 2, None),
        ("~/pictures", 2, None),
        ("classes:~/pictures", 2, ("cats", "dogs")),
        ("list.txt", 1, ("cat",)),
    ],
)
def test_paths(tree, spec, images, classes):
    source = open_source(spec)
    assert len(source) == images
    assert source.classes == classes
    assert source.image(0).shape == (3, 2, 2)


def test_digits():
    assert open_source("digits").id(0) == "digits/train/0"
    assert open_source("digits", "test").id(0) == "digits/test/0"


def test_data_sets(tree, monkeypatch):
    calls = []

    def called(*given, **named):
        calls.append([*map(str, given), *named.values()])
        return Arrays(np.zeros((1, 2, 2), np.uint8))

    monkeypatch.setattr(opening, "torchvision_source", called)
    monkeypatch.setattr(opening, "mnist_on_cifar", called)
    open_source("cifar10:~/data", "test", download=True)
    open_source("pets:C:/data")
    open_source("mnist-on-cifar:data")
    assert calls == [
        ["cifar10", f"{tree}/data", "test", "True"],
        ["pets", "C:/data", "None", "False"],
        ["data", "train", False],
    ]


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("cifar01:data", None, "'cifar01' is neither a data set nor a path that exists (did you mean cifar10?)"),
        ("picturs", None, "'picturs' is neither a data set nor a path that exists (did you mean pictures?)"),
        ("digit", None, "did you mean digits?"),
        ("quux", None, "nor a path that exists; there are: digits, handwriting, mnist-on-cifar, cifar10"),
        ("cifar10", None, "Write cifar10:PATH (for a folder that is called cifar10: ./cifar10)"),
        ("folder:", None, "Write folder:PATH"),
        ("digits:data", None, "write digits, not digits:data"),
        ("digits", "val", "it has: train, test"),
        ("folder:pictures", "train", "pictures is all one split; leave out 'train'"),
        ("pictures", "val", "pictures is all one split; leave out 'val'"),
        ("./picturs", None, "did you mean pictures?"),
        ("folder:picturs", None, "did you mean pictures?"),
        ("Z:/data", None, "no such folder or list: Z:/data"),
        ("pictures/cats/a.png", None, "a list of images ends in"),
        ("data/train-{000..010}.tar", None, "names shards"),
        ("train.TGZ", None, "names shards"),
        ("shards:data", None, "images are needed by number"),
    ],
)
def test_mistakes(tree, spec, split, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_source(spec, split)


@pytest.mark.parametrize("spec", ["shards:pictures.tar", "pictures.tar", "shards:.", "shards:pictures.{tar,tar}"])
def test_shards(tree, spec, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
    with tarfile.open(tree / "pictures.tar", "w") as tar:
        tar.add(tree / "pictures" / "cats" / "a.png", "a.png")
    assert open_data(spec).sizes.tolist() == [1] * (1 + spec.count(","))
    with pytest.raises(ValueError, match="all one split; leave out 'val'"):
        open_data(spec, "val")


@pytest.mark.parametrize(
    "spec", ["tars", "~/tars", "index.json", "https://host/a.tar?sig=1", "s3://host/a", "pipe:cat a.tar"]
)
def test_what_is_taken_for_shards(tree, spec, monkeypatch):
    (tree / "tars").mkdir()
    for name in ("a.tar", "b.tgz", ".hidden"):
        (tree / "tars" / name).touch()
    monkeypatch.setattr(opening, "open_shards", lambda spec: Shards((spec,), np.array([1])))
    shards = open_data(spec)
    assert isinstance(shards, Shards)
    assert shards.urls == (spec,)


@pytest.mark.parametrize(
    "spec", ["folder:pictures.tar", "pictures.tar", "classes:pictures.tar", "list:a.json/list.txt"]
)
def test_what_is_not_taken_for_shards(tree, spec):
    (tree / "pictures").rename(tree / "pictures.tar")
    (tree / "a.json").mkdir()
    (tree / "a.json" / "list.txt").write_text(f"{tree}/pictures.tar/cats/a.png\n")
    assert len(open_data(spec)) == (1 if spec.startswith("list") else 2)


def test_data_may_be_a_source(tree):
    assert len(open_data("folder:pictures")) == 2
