"""Parts of labelled images."""

import numpy as np
import pytest

from prototile.data import Arrays, Subset, held_out, named, stratified

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [200, 40, 9, 1]))


def source(labels: np.ndarray | None = LABELS) -> Arrays:
    return Arrays(np.zeros((250 if labels is None else len(labels), 2, 2), np.uint8), labels, name="a")


def ids(part: Subset) -> list[str]:
    return [part.id(i) for i in range(len(part))]


def test_a_share_of_every_class():
    part = stratified(source(), 0.1)
    assert np.bincount(part.labels).tolist() == [20, 4, 1, 1]
    numbers = [int(id.split("/")[1]) for id in ids(part)]
    assert numbers == sorted(numbers)
    assert ids(stratified(source(), 1.0)) == ids(Subset(source(), np.arange(250)))


def test_a_seed_draws_one_order():
    assert ids(stratified(source(), 0.1)) == ids(stratified(source(), 0.1))
    assert set(ids(stratified(source(), 0.01))) < set(ids(stratified(source(), 0.1)))
    assert ids(stratified(source(), 0.1, seed=1)) != ids(stratified(source(), 0.1))


def test_a_part_is_held_out():
    rest, held = held_out(source(), 0.2)
    assert np.bincount(held.labels, minlength=4).tolist() == [40, 8, 2, 0]
    assert not set(ids(rest)) & set(ids(held))
    assert len(rest) + len(held) == 250
    one, other = held_out(source(np.array([0, 0, 1, 1])), 0.9)  # each side has something of each class
    assert sorted(one.labels) == sorted(other.labels) == [0, 1]


def test_named_images(tmp_path):
    given = source()
    assert ids(named(given, ["a/7", "a/3", "a/7"])) == ["a/3", "a/7"]
    assert ids(named(given, ["12", "a/3"])) == ["a/3", "a/12"]  # the name of a file is enough


class Twice(Arrays):
    """Two images of one name."""

    def id(self, index: int) -> str:
        return f"{index}/x.png"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stratified(source(), 0.0), r"share lies in \(0, 1\], got 0.0"),
        (lambda: stratified(source(None), 0.1), "there are no labels"),
        (lambda: held_out(source(), 1.0), r"held out lies in \(0, 1\), got 1.0"),
        (lambda: held_out(source(np.arange(5)), 0.5), "every class has one image only"),
        (lambda: named(source(), []), "names no images"),
        (lambda: named(source(), ["b", "a/3", "c"]), "2 of 3 images of the list are not in this data: b, c; ids look"),
        (lambda: named(Twice(np.zeros((2, 2, 2), np.uint8)), ["x.png"]), "several images are called x.png"),
    ],
)
def test_what_cannot_be(call, said):
    with pytest.raises(ValueError, match=said):
        call()
