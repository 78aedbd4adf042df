"""Outputs on disk: those of memory, reused when nothing has changed, and never when something has."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_cases import Pixels, Some
from prototile.data.files import class_folders
from prototile.data.source import Arrays, Subset
from prototile.evaluation import Crop, extract, outputs_of
from prototile.evaluation.stored import fingerprint
from prototile.views import CIFAR10

CROP = Crop(4)


def some(network, source, folder, *, key="a", crop=CROP, batch=2):
    """Pixels, and their mean."""
    calls = len(network.batches)

    def outputs(images, numbers):
        features = network(images).pooled
        return {"features": features, "means": features.mean(1, keepdim=True)}

    found = outputs_of(source, outputs, network, folder=folder, key={"checkpoint": key}, crop=crop, batch=batch)
    assert found.reused == (len(network.batches) == calls)
    return found


def test_they_are_those_of_memory(tmp_path):
    network, source = Pixels(48).train(), Some([(4, 4), (8, 5), (6, 4), (4, 4), (9, 9)], bad=[1])
    found = some(network, source, tmp_path)
    wanted = extract(network, source, size=4, batch=3)
    torch.testing.assert_close(found.outputs["features"], wanted.features)
    torch.testing.assert_close(found.outputs["means"][:, 0], wanted.features.mean(1))
    assert found.labels.tolist() == [0, 2, 0, 1]
    assert found.taken.tolist() == [0, 2, 3, 4]
    assert found.bad == (("image 1", "cut off"),)
    assert len(found) == 4
    assert network.training


def test_what_is_there_is_not_computed_again(tmp_path):
    network, source = Pixels(48), Some([(4, 4)] * 5, bad=[3])
    first, second = (some(network, source, tmp_path, batch=batch) for batch in (2, 5))  # the batch decides nothing
    assert (first.reused, second.reused) == (False, True)
    torch.testing.assert_close(first.outputs["features"], second.outputs["features"])
    assert first.bad == second.bad
    assert first.taken.tolist() == second.taken.tolist()


def test_what_has_changed_is_computed(tmp_path):
    network, pixels = Pixels(48), np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    some(network, Arrays(pixels), tmp_path)
    other = pixels.copy()
    other[3, 2, 1, 0] += 1
    assert not some(network, Arrays(other), tmp_path).reused
    assert not some(network, Arrays(pixels, np.arange(5)), tmp_path).reused
    assert not some(network, Subset(Arrays(pixels), np.array([0, 1, 2, 4, 3])), tmp_path).reused
    assert not some(network, Arrays(pixels), tmp_path, key="b").reused
    assert not some(network, Arrays(pixels), tmp_path, crop=Crop(4, 5)).reused
    assert not some(network, Arrays(pixels), tmp_path, crop=Crop(4, normalization=CIFAR10)).reused
    assert some(network, Arrays(pixels), tmp_path).reused


def test_files_are_known_by_size_and_time(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    first = fingerprint(class_folders(tmp_path))
    assert fingerprint(class_folders(tmp_path)) == first
    Image.new("RGB", (4, 4), (200, 9, 50)).save(tmp_path / "a/1.png")
    assert fingerprint(class_folders(tmp_path)) != first
    (tmp_path / "a/1.png").unlink()
    (tmp_path / "a/2.png").symlink_to("nowhere")
    fingerprint(class_folders(tmp_path))  # who reads the image will say what is wrong with it


def test_nothing_half_written_stays(tmp_path):
    def broken(images, numbers):
        raise RuntimeError("out of memory")

    network = Pixels(48)
    with pytest.raises(RuntimeError, match="out of memory"):
        outputs_of(Some([(4, 4)]), broken, network, folder=tmp_path, key={}, crop=CROP)
    with pytest.raises(ValueError, match="none of the 2 images can be read; the first: cut off"):
        some(network, Some([(4, 4)] * 2, bad=[0, 1]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_mapped_and_the_file_is_never_written(tmp_path):
    network, source = Pixels(48), Some([(4, 4)] * 3)
    found = some(network, source, tmp_path)
    before = found.outputs["features"].clone()
    found.outputs["features"][0] = 7.0  # in memory alone
    torch.testing.assert_close(some(network, source, tmp_path).outputs["features"], before)
    about = json.loads((found.folder / "about.json").read_text())
    assert about["dims"] == {"features": 48, "means": 1}
