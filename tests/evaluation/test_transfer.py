"""The transfer suite's parts, on tiny trees in the layout of each data set."""

import numpy as np
import pytest
import torch
from PIL import Image

from prototile.evaluation.transfer import AVERAGED, SUITE, average, transfer_parts


def plant(root, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / path)


def ids(source) -> list[str]:
    return [source.id(i) for i in range(len(source))]


def test_metrics():
    """As in the paper: the mean over classes for three of them."""
    by_class = {name for name, task in SUITE.items() if task.metric == "mean per class"}
    assert by_class == {"caltech101", "flowers102", "pets"}
    assert len(AVERAGED) == 8
    assert set(SUITE) - set(AVERAGED) == {"voc07"}
    assert SUITE["voc07"].metric == "mAP 11"
    assert {name for name, task in SUITE.items() if task.validation == "val"} == {"dtd", "flowers102", "voc07"}


def test_caltech_has_thirty_of_each_class(tmp_path):
    place = "caltech101/101_ObjectCategories"
    plant(tmp_path, *(f"{place}/{name}/image_{i:04d}.jpg" for name, n in (("ant", 33), ("bee", 31)) for i in range(n)))
    parts = transfer_parts("caltech101", tmp_path)
    assert parts.drawn
    assert parts.validation is None
    assert torch.bincount(torch.from_numpy(parts.train.labels)).tolist() == [30, 30]
    assert torch.bincount(torch.from_numpy(parts.test.labels)).tolist() == [3, 1]
    assert not set(ids(parts.train)) & set(ids(parts.test))
    assert ids(transfer_parts("caltech101", tmp_path).train) == ids(parts.train)
    assert ids(transfer_parts("caltech101", tmp_path, seed=1).train) != ids(parts.train)


@pytest.mark.parametrize("place", ["SUN397", "SUN397/Partitions"])
def test_sun_has_official_lists(tmp_path, place):
    plant(tmp_path, *(f"SUN397/a/abbey/sun_{i}.jpg" for i in range(4)), "SUN397/z/zoo/indoor/sun_9.jpg")
    (tmp_path / "SUN397" / "ClassName.txt").write_text("/a/abbey\n/z/zoo/indoor\n")
    drawn = transfer_parts("sun397", tmp_path)
    assert drawn.drawn
    assert (len(drawn.train), len(drawn.test)) == (3, 2)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "Training_01.txt").write_text("/a/abbey/sun_2.jpg\n/z/zoo/indoor/sun_9.jpg\n")
    (tmp_path / place / "Testing_01.txt").write_text("/a/abbey/sun_0.jpg\n")
    parts = transfer_parts("sun397", tmp_path)
    assert not parts.drawn
    assert ids(parts.train) == ["SUN397/a/abbey/sun_2.jpg", "SUN397/z/zoo/indoor/sun_9.jpg"]
    assert ids(parts.test) == ["SUN397/a/abbey/sun_0.jpg"]


def test_splits_where_there_are_some(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "dtd/dtd/labels").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"dtd/dtd/labels/{split}1.txt").write_text(f"banded/{split}.jpg\n")
        plant(tmp_path, f"dtd/dtd/images/banded/{split}.jpg")
    parts = transfer_parts("dtd", tmp_path)
    assert ids(parts.train) == ["dtd/dtd/images/banded/train.jpg"]
    assert ids(parts.validation) == ["dtd/dtd/images/banded/val.jpg"]
    assert ids(parts.test) == ["dtd/dtd/images/banded/test.jpg"]


def test_the_average_needs_all_eight():
    values = {name: 0.5 + 0.01 * i for i, name in enumerate(AVERAGED)}
    assert average(values) == pytest.approx(0.535)
    assert average(values | {"voc07": 0.0}) == pytest.approx(0.535)
    del values["pets"]
    assert average(values) is None


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="the transfer suite has caltech101"):
        transfer_parts("cars", tmp_path)
    with pytest.raises(ValueError, match="is not, or not all, in"):
        transfer_parts("pets", tmp_path)
