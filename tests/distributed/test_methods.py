"""Whole training steps of every method: two ranks with half of the images each equal one with all."""

import pytest
import torch

from method_cases import CASES
from method_ranks import SyncedNorm, synced, training
from ranks import RankPool


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(name, two_ranks: RankPool):
    alone = training(0, 1, name)
    first, second = two_ranks.run(training, name)
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, alone["loss"], rtol=1e-9, atol=1e-10)
    for key in alone.keys() - {"loss"}:
        assert torch.equal(first[key], second[key]), f"{key} differs between ranks"
        torch.testing.assert_close(first[key], alone[key], rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def test_the_synchronised_norm_is_batch_norm():
    for norm, shape in ((torch.nn.BatchNorm1d(5), (8, 5)), (torch.nn.BatchNorm2d(5), (4, 5, 3, 2))):
        torch.nn.init.normal_(norm.weight)
        x = torch.randn(shape)
        torch.testing.assert_close(SyncedNorm(norm)(x), norm(x))
    assert not [m for m in synced(CASES["msn"].make()).modules() if isinstance(m, torch.nn.BatchNorm1d)]
