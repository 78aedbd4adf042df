"""Two gloo processes equal one: loss, gradient and state after several steps, wherever batch statistics are used."""

import pytest
import torch

from rank_cases import CASES, unequal_gather
from ranks import RankPool, combined, fail


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_two_ranks_equal_one(case, two_ranks: RankPool):
    alone = case(0, 1)
    together = two_ranks.run(case)
    for name, expected in alone.items():
        torch.testing.assert_close(
            combined(name, [part[name] for part in together]),
            expected,
            rtol=1e-10,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_unequal_rows_are_refused(two_ranks: RankPool):
    for message in two_ranks.run(unequal_gather):
        assert "ranks hold between 3 and 4 rows" in message


def test_the_pool_reports_failures(two_ranks: RankPool):
    with pytest.raises(RuntimeError, match="rank 0"):
        two_ranks.run(fail)
