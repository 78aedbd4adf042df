"""The plan: the cheapest backend within the budget."""

import pytest
import torch

from prototile.assignments import Assignments, Pairs, plan, scratch_budget
from prototile.assignments import scratch as scratch_memory


def chosen(*, rows: int, views: int, prototypes: int, budget: int, teacher_views: int, mean: bool = False) -> plan.Plan:
    logits = Assignments(torch.zeros(rows * views, 4), torch.zeros(prototypes, 4), 0.1).tiled(views)
    with scratch_budget(budget):
        return plan.choose(logits, teacher_views, mean=mean)


def test_direct_where_it_fits():
    assert chosen(rows=32, views=12, teacher_views=2, prototypes=1000, budget=2**26) == plan.Plan("direct", 32)


def test_blocks_are_even():
    """Of 32 images 20 fit: two blocks of 16, not one of 20 and one of 12."""
    budget = 20 * 14 * 1000 * 4
    assert chosen(rows=32, views=12, teacher_views=2, prototypes=1000, budget=budget) == plan.Plan("direct", 16)


def test_row_where_one_images_views_do_not_fit_together():
    budget = 100 * 1000 * 4
    assert chosen(rows=8, views=99, teacher_views=2, prototypes=1000, budget=budget).backend == "row"


def test_stream_where_hardly_anything_fits():
    for mean in (False, True):
        assert chosen(rows=64, views=2, teacher_views=2, prototypes=5000, budget=8, mean=mean).backend == "stream"


def test_the_default_budget():
    assert scratch_memory.budget(torch.zeros(10, 10)) == 64 * 2**20
    assert scratch_memory.budget(torch.empty(100_000, 256)) == 100_000 * 256 * 4
    with scratch_budget(5):
        assert scratch_memory.budget(torch.zeros(10, 10)) == 5


def test_scratch_memory_is_reused_and_released():
    scratch_memory.release()
    loan = scratch_memory.borrow(1000, torch.zeros(()))
    address = loan.tensor.data_ptr()
    del loan
    again = scratch_memory.borrow(900, torch.zeros(()))
    assert again.tensor.data_ptr() == address
    other = scratch_memory.borrow(900, torch.zeros(()))
    assert other.tensor.data_ptr() != address
    assert scratch_memory.borrow(10, torch.zeros((), dtype=torch.float64)).tensor.dtype == torch.float64
    del again, other
    scratch_memory.release()
    assert not scratch_memory._idle


def test_pairs():
    assert Pairs.cross(2, 3).views == ((0.0, 0.25, 0.25), (0.25, 0.0, 0.25))
    assert Pairs.every(1, 2).views == ((0.5, 0.5),)
    assert Pairs.same(2).times(2).views == ((1.0, 0.0), (0.0, 1.0))
    with pytest.raises(ValueError, match="have no pair of different views"):
        Pairs.cross(1, 1)
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="finite and not negative"):
            Pairs.weighted([[weight]])
    with pytest.raises(ValueError, match="there must be views to pair"):
        Pairs.every(0, 1)
    with pytest.raises(ValueError, match="teacher x student table"):
        Pairs.weighted([[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="3 rows in a student view but 2 row weights"):
        Pairs.every(1, 1).weighing(torch.ones(2)).row_weights(torch.zeros(3, 4))


def test_masks_that_are_none(unchecked):
    for mask in (torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="must be boolean, images x patches"):
            Pairs.masked(mask)


def test_masked_pairs_weigh_images_equally():
    """An image without a mask counts in the mean, as zero."""
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    torch.testing.assert_close(Pairs.masked(mask).rows, torch.tensor([1 / 6, 1 / 6, 1 / 3], dtype=torch.float64))
