"""Scores of a classifier: every rank looks at its images, and all know the result."""

import pytest

from finetuning_cases import scored
from ranks import RankPool


@pytest.mark.parametrize("images", [1, 41])
def test_two_ranks_share_the_images(images, two_ranks: RankPool):
    """Also where one of them has none."""
    assert two_ranks.run(scored, images) == [scored(0, 1, images)] * 2
