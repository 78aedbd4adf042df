"""Parts of labelled images: what is in them, what a seed decides, lists of images."""

import numpy as np
import pytest
import torch

from prototile.data.source import Arrays, Subset
from prototile.data.subsets import held_out as held_out_of_source
from prototile.data.subsets import stratified
from prototile.evaluation.splits import held_out, read_ids, share_of_each, some_of_each, write_ids

ORDER = torch.randperm(59, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0] * 40 + [1] * 10 + [-1] * 5 + [2] * 3 + [3])[ORDER]


def counts(numbers: torch.Tensor) -> list[int]:
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert bool((LABELS[numbers] >= 0).all())
    return torch.bincount(LABELS[numbers], minlength=4).tolist()


def test_a_part_of_each_class_is_held_out():
    kept, held = held_out(LABELS, 0.2)
    assert counts(held) == [8, 2, 1, 0]
    assert counts(kept) == [32, 8, 2, 1]
    assert not set(kept.tolist()) & set(held.tolist())


def test_some_and_a_share_of_each_class():
    assert counts(some_of_each(LABELS, 1)) == [1, 1, 1, 1]
    assert counts(share_of_each(LABELS, 0.1)) == [4, 1, 1, 1]
    assert set(some_of_each(LABELS, 1).tolist()) <= set(share_of_each(LABELS, 0.3).tolist())
    with pytest.raises(ValueError, match="1 classes have fewer than 2 images, class 3 the first"):
        some_of_each(LABELS, 2)


def test_seeds_draw_others():
    drawn = [some_of_each(LABELS, 1, seed=seed).tolist() for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(x) for x in drawn}) == 3


def test_they_are_the_subsets_of_a_source():
    """Linear and fine-tuned classifiers learn from the same 10%."""
    known = LABELS[LABELS >= 0]
    source = Arrays(np.zeros((len(known), 1, 1), np.uint8), known.numpy(), name="a")

    def numbers(subset: Subset) -> list[int]:
        return [int(subset.id(i).partition("/")[2]) for i in range(len(subset))]

    assert numbers(stratified(source, 0.1, seed=3)) == share_of_each(known, 0.1, seed=3).tolist()
    parts = held_out_of_source(source, 0.2, seed=3)
    assert [numbers(part) for part in parts] == [x.tolist() for x in held_out(known, 0.2, seed=3)]


def test_images_of_several_classes():
    kept, held = held_out(torch.ones(50, 3, dtype=torch.long), 0.2)
    assert (len(kept), len(held)) == (40, 10)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(50))


def test_lists_of_images(tmp_path):
    ids = ["n01/n01_7.JPEG", "n02/n02_1.JPEG", "n02/twice.png", "n01/twice.png", "n03/\udcff.png"]
    write_ids(tmp_path / "a/list.txt", [ids[1], ids[4], ids[3]])
    assert read_ids(tmp_path / "a/list.txt", ids).tolist() == [1, 3, 4]
    (tmp_path / "official.txt").write_text("n02_1.JPEG\n\nn01_7.JPEG\n")
    assert read_ids(tmp_path / "official.txt", ids).tolist() == [0, 1]
    (tmp_path / "bad.txt").write_text("n02_1.JPEG\nnowhere.png\n")
    with pytest.raises(ValueError, match=r"bad\.txt: 1 of 2 images .*: nowhere\.png; ids look like n01/n01_7"):
        read_ids(tmp_path / "bad.txt", ids)
    (tmp_path / "bad.txt").write_text("twice.png\n")
    with pytest.raises(ValueError, match=r"bad\.txt: several images are called twice\.png"):
        read_ids(tmp_path / "bad.txt", ids)
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no images"):
        read_ids(tmp_path / "none.txt", ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: held_out(LABELS, 1.0), r"lies in \(0, 1\)"),
        (lambda: held_out(torch.arange(4)), "no class has two labelled images"),
        (lambda: held_out(torch.full((4,), -1)), "no class has two labelled images"),
        (lambda: some_of_each(LABELS, 0), "at least one image"),
        (lambda: share_of_each(LABELS, 0.0), r"lies in \(0, 1\]"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
