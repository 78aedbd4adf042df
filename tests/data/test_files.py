"""Files: what is found and in which order, labels, lists, and errors that help."""

import os
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from prototile.data.files import Files, Strings, class_folders, folder, listed
from prototile.data.source import BadImage

PIXEL = np.full((2, 3, 3), 7, np.uint8)


def plant(root, *paths: str):
    """Small images at these paths; what is no image is a text."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            Image.fromarray(PIXEL).save(file)
        else:
            file.write_text("text")
    return root


def ids(source) -> list[str]:
    return [source.id(index) for index in range(len(source))]


def refused(message: str):
    return pytest.raises(ValueError, match=re.escape(message))


def test_strings():
    words = ["a", "", "dögs/ü.jpg", os.fsdecode(b"not-utf8-\xff"), "日本"]
    strings = Strings(words)
    assert list(strings) == words
    assert strings[-1] == words[-1]
    assert list(pickle.loads(pickle.dumps(strings))) == words
    for index in (5, -6):
        with pytest.raises(IndexError):
            strings[index]
    assert list(Strings([])) == []


def test_many_paths_are_small_when_pickled():
    files = Files("/data", [f"class{i % 1000:04d}/image{i:07d}.jpg" for i in range(200_000)])
    pickled = pickle.dumps(files)
    assert len(pickled) < 200_000 * (26 + 8) + 1000  # letters and an offset each
    assert pickle.loads(pickled).id(123_456) == "class0456/image0123456.jpg"


def test_folder(tmp_path):
    plant(
        tmp_path, "b.JPG", "a/x.png", "a/deep/er/y.Jpeg", "a/notes.txt", "._b.jpg", ".hidden/z.png", "c.jpg/inside.png"
    )
    source = folder(tmp_path)
    assert ids(source) == ["a/deep/er/y.Jpeg", "a/x.png", "b.JPG", "c.jpg/inside.png"]
    assert source.labels is None
    assert source.classes is None
    assert source.image(1).shape == (3, 2, 3)
    assert int(source.image(1).max()) == 7


def test_bad_files_are_bad_images(tmp_path):
    plant(tmp_path, "a.png")
    (tmp_path / "b.png").write_text("text")
    os.symlink(tmp_path / "gone.png", tmp_path / "c.png")
    source = folder(str(tmp_path))
    assert len(source) == 3
    for index in (1, 2):
        with pytest.raises(BadImage):
            source.image(index)


def test_links_are_followed_but_not_in_circles(tmp_path):
    plant(tmp_path, "root/a.png", "elsewhere/b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "linked")
    os.symlink(tmp_path / "root", tmp_path / "root" / "circle")
    os.symlink(tmp_path / "root", tmp_path / "elsewhere" / "back")
    os.symlink(tmp_path / "self", tmp_path / "self")
    os.symlink(tmp_path / "root" / "itself", tmp_path / "root" / "itself")
    assert ids(folder(tmp_path / "root")) == ["a.png", "linked/b.png"]


def test_folders_that_hold_no_images(tmp_path):
    plant(tmp_path, "images/a.png", "texts/a.txt", "texts/b.TXT", "texts/deep/c.json", "texts/README")
    (tmp_path / "empty").mkdir()
    with refused(f"no such folder: {tmp_path}/imags/train (did you mean {tmp_path}/images?)"):
        folder(tmp_path / "imags" / "train")
    with refused(f"no such folder: {tmp_path}/images/quite-different ({tmp_path}/images has no quite-different)"):
        folder(tmp_path / "images" / "quite-different")
    with refused("a.png is a file, but a folder is needed here"):
        folder(tmp_path / "images" / "a.png")
    with refused(f"no images below {tmp_path}/empty (found: it is empty); images end in .jpg"):
        folder(tmp_path / "empty")
    with refused("(found: 2 x .txt, 1 x "):
        folder(tmp_path / "texts")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied", path)

    plant(tmp_path, "a.png")
    monkeypatch.setattr(os, "scandir", locked)
    with refused(f"cannot list the folder {tmp_path}/: Permission denied"):
        folder(tmp_path)


def test_class_folders(tmp_path):
    plant(tmp_path, "10/a.png", "9/a.png", "9/deep/b.png", "a b/a.png", "stray.png", ".hidden/a.png")
    source = class_folders(tmp_path)
    assert source.classes == ("10", "9", "a b")
    assert ids(source) == ["10/a.png", "9/a.png", "9/deep/b.png", "a b/a.png"]
    assert source.labels.tolist() == [0, 1, 1, 2]


def test_class_folders_as_torchvision_numbers_them(tmp_path):
    from torchvision.datasets import ImageFolder

    plant(tmp_path, *(f"{name}/{i}.png" for name in ("b", "B", "a", "10", "2") for i in range(2)))
    source, theirs = class_folders(tmp_path), ImageFolder(tmp_path)
    assert list(source.classes) == theirs.classes
    assert {str(tmp_path / name): label for name, label in zip(ids(source), source.labels, strict=True)} == dict(
        theirs.samples
    )


def test_class_folders_that_are_none(tmp_path):
    plant(tmp_path, "flat/a.png", "half/cats/a.png", "half/dogs/readme.txt")
    with refused(f"use folder:{tmp_path}/flat"):
        class_folders(tmp_path / "flat")
    with refused(f"no images in the class folder(s) dogs of {tmp_path}/half"):
        class_folders(tmp_path / "half")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("val", "train"), "holds the splits train and val: open classes:{root}/train"),
        (("Test", "validation", "Train"), "the splits Train and validation and Test: open classes:{root}/Train"),
    ],
)
def test_class_folders_of_splits(tmp_path, names, message):
    plant(tmp_path, *(f"{name}/cats/a.png" for name in names))
    with refused(message.format(root=tmp_path)):
        class_folders(tmp_path)
    plant(tmp_path, "goods/a.png")
    assert len(class_folders(tmp_path).classes) == len(names) + 1


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plant(tmp_path, "data/cats/a.png")
    (tmp_path / "list.txt").write_text("data/cats/a.png\n")
    for source in (folder("~/data"), class_folders("~/data"), listed("~/list.txt", root="~")):
        assert source.image(0).shape == (3, 2, 3)
    with refused("no such folder: ~nobody-of-this-name/data"):
        folder("~nobody-of-this-name/data")


def test_files_are_found_from_any_folder(tmp_path, monkeypatch):
    plant(tmp_path, "data/a.png")
    monkeypatch.chdir(tmp_path)
    source = folder("data")
    monkeypatch.chdir("/")
    assert source.image(0).shape == (3, 2, 3)


def test_lists_of_lines(tmp_path):
    plant(tmp_path, "a b.png", "deep/c.png")
    file = tmp_path / "list.txt"
    file.write_text("# comment\n\na b.png\n  ./deep/c.png \nmissing.png\r\n")
    source = listed(file)
    assert ids(source) == ["a b.png", "deep/c.png", "missing.png"]
    assert source.labels is None
    assert source.image(1).shape == (3, 2, 3)
    file.write_text("a b.png\tzebra\ndeep/c.png\tant\n")
    source = listed(file)
    assert source.classes == ("ant", "zebra")
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("name", "separator"), [("list.csv", ","), ("list.TSV", "\t")])
@pytest.mark.parametrize("column", ["path", "image", "file", "Filename"])
def test_tables(tmp_path, name, separator, column):
    plant(tmp_path / "images", "a, b.png", "c.png")
    rows = [(column, "width", "label"), ('"a, b.png"', "3", "7"), ("c.png", "3", "-1"), ("", "", "")]
    text = "\ufeff" + "\n".join(separator.join(row) for row in rows[:3]) + "\n\n"
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = listed(tmp_path / name, root=tmp_path / "images")
    assert ids(source) == ["a, b.png", "c.png"]
    assert source.labels.tolist() == [7, -1]
    assert source.labels.dtype == np.int64
    assert source.classes is None


def test_absolute_paths_in_lists(tmp_path):
    plant(tmp_path, "images/a.png", "lists/b.png")
    file = tmp_path / "lists" / "list.csv"
    file.write_text(f"image\n{tmp_path}/images/a.png\nb.png\n")
    source = listed(file)
    assert ids(source) == [f"{tmp_path}/images/a.png", "b.png"]
    for index in range(2):
        assert source.image(index).shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "", "names no images"),
        ("l.csv", "path,label\n", "names no images"),
        ("l.csv", "", "it has: none"),
        ("l.csv", "url,label\na.png,1\n", "it has: url, label"),
        ("l.csv", "a.png,1\n", "needs a header with a column `path`"),
        ("l.csv", "path,class\na.png,1\n", "has no column `label` but: path, class"),
        ("l.csv", "path,label\na.png,1\na.png,\n", "line 3: expected path, label, got ['a.png', '']"),
        ("l.csv", "path,label\na.png,1,2\n", "line 2: expected path, label, got ['a.png', '1', '2']"),
        ("l.txt", f"a.png\t1\n\na.png\t{10**19}\n", "l.txt, line 3: a label has at most 18 digits, got 10000"),
        ("l.csv", f"path,label\na.png,{10**19}\n", "l.csv, line 2: a label has at most 18 digits, got 10000"),
        ("l.csv", "path,label\na.png,1\n" + '"a.png,1\n' + "a.png,1\n" * 20_000, "l.csv, line 3: field larger"),
        ("l.csv", 'path\na.png\n"a.png\na.png\n', "l.csv, line 3: unexpected end of data; close or remove the quote"),
        ("l.txt", "a.png\t1\t2\n", "line 1: expected PATH or PATH, TAB, LABEL"),
        ("l.txt", "a.png\t1\na.png\n", "only 1 of the 2 rows"),
        ("l.txt", "b.png\nc.png\n", "none of the first 2 files"),
        ("l.txt", "a.png 3\n", "a label is separated by a TAB"),
        ("l.json", "[]", "a list of images ends in .txt .lst .csv .tsv, not as l.json"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, text, message):
    plant(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with refused(message):
        listed(tmp_path / name)


def test_lists_that_are_not_there(tmp_path):
    plant(tmp_path, "train.txt")
    with refused(f"no such list: {tmp_path}/trian.txt (did you mean {tmp_path}/train.txt?)"):
        listed(tmp_path / "trian.txt")
    with refused("is a folder, but a list is needed here"):
        listed(tmp_path)
    with refused("no such folder"):
        listed(tmp_path / "train.txt", root=tmp_path / "nowhere")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with refused("is not UTF-8 text"):
        listed(tmp_path / "train.txt")


def test_missing_files_are_said_relative_to_what(tmp_path):
    (tmp_path / "list.txt").write_text("b.png\n")
    with refused(f"for example {tmp_path}/b.png; relative paths are taken relative to {tmp_path}"):
        listed(tmp_path / "list.txt")


def test_labels_for_each_path():
    with refused("there are 2 paths but 1 labels"):
        Files("/data", ["a", "b"], np.zeros(1, np.int64))


def test_no_file_is_looked_at_while_finding(tmp_path, monkeypatch):
    """A look at each file is what makes finding slow, above all on disks that are far away."""
    for i in range(5):
        (tmp_path / f"{i:02d}").mkdir()
        for j in range(40):
            (tmp_path / f"{i:02d}" / f"{j}.jpg").touch()
    looks, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looks.append(path) or stat(path, **options))
    assert len(class_folders(tmp_path)) == 200
    assert 6 <= len(looks) <= 8  # the folders


def test_a_folder_of_archives_is_perhaps_one_of_shards(tmp_path):
    (tmp_path / "a.tar.gz").touch()
    (tmp_path / "README").touch()
    with refused(f"Tar files are opened as shards:{tmp_path}"):
        folder(tmp_path)
