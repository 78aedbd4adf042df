"""Prototypes shared out over two and four ranks give what one process with all of them gives."""

import pytest
import torch

import sharded_cases
from method_cases import CLUSTERING
from method_ranks import prepared, training
from prototile.distributed import shard_of
from prototile.methods import koleo_proto
from prototile.schedules import Constant
from prototile.training.optimization import Optimization, Special
from ranks import RankPool, combined
from sharded_cases import (
    CASES,
    K,
    a_few,
    explicit_balancing,
    no_rows,
    offsets,
    parts,
    prototypes,
    reductions,
    said,
    single_precision,
    sinkhorn_of_wide_logits,
    unlike_losses,
)


@pytest.fixture(params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> RankPool:
    return request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[request.param])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_shards_equal_the_whole(case, ranks: RankPool):
    alone = case(0, 1)
    together = ranks.run(case)
    assert all(found.keys() == alone.keys() for found in together)
    for name, expected in alone.items():
        torch.testing.assert_close(
            combined(name, [found[name] for found in together]),
            expected,
            rtol=1e-9,
            atol=1e-11,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("case", [offsets, explicit_balancing, reductions, sinkhorn_of_wide_logits, no_rows])
def test_a_rank_alone(case, monkeypatch: pytest.MonkeyPatch):
    """With all prototypes as its part."""
    expected = case(0, 1)
    monkeypatch.setattr(
        sharded_cases, "prototypes", lambda *given, **named: (prototypes(*given, **named)[0], shard_of(K))
    )
    found = case(0, 1)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)


def test_single_precision(four_ranks: RankPool):
    """Of logits that float32 cannot exponentiate, beside the same in float64."""
    alone = single_precision(0, 1)
    together = four_ranks.run(single_precision)
    for name, expected in alone.items():
        found = combined(name, [x[name] for x in together])
        torch.testing.assert_close(
            found.to(expected), expected, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_rank_has_a_loss_of_its_own(ranks: RankPool):
    for found, dense in ranks.run(unlike_losses):
        torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("embeddings", "the embeddings hold numbers that are not finite"),
        ("prototypes", "the prototypes hold numbers that are not finite"),
        ("rows", "prototypes, and there are"),
        ("unlike", "must be shared out over ranks alike"),
    ],
)
def test_all_ranks_hear_what_is_wrong(what, message, two_ranks: RankPool):
    for text in two_ranks.run(said, what):
        assert message in text


def test_rows_are_dealt_out_as_torch_does_it(ranks: RankPool):
    ranks.run(parts)


def test_no_rank_is_left_without_prototypes(ranks: RankPool):
    assert ranks.run(a_few) == [False] * ranks.world


OPTIMIZATIONS = {
    name: Optimization(
        lr=Constant(0.01),
        lr_scaling="none",
        optimizer=name,
        weight_decay=Constant(0.1),
        clip=0.3,
        clip_by=clip_by,
        roles={"prototypes": Special(weight_decay=Constant(0.2), freeze_steps=1)},
    )
    for name, clip_by in (("adamw", "total"), ("lars", "tensor"), ("larc", "tensor"))
}


@pytest.mark.parametrize("name", CLUSTERING)
def test_methods_train_as_one(name, two_ranks: RankPool):
    """21 prototypes, which two ranks cannot share equally, are drawn apart by KoLeo-proto, too."""
    _train_alike(name, two_ranks, {"num_prototypes": 21, "add_ons": [koleo_proto(partition=10)]})


@pytest.mark.parametrize("optimizer", OPTIMIZATIONS)
def test_optimizers_step_as_one(optimizer, two_ranks: RankPool):
    """Norms for adaptive rates and for clipping are those of whole matrices; a frozen part rests."""
    _train_alike("dinov2", two_ranks, {"num_prototypes": 21}, OPTIMIZATIONS[optimizer])


def test_prototypes_start_from_k_means(two_ranks: RankPool):
    first, second = two_ranks.run(prepared, True)
    assert torch.equal(first, second)
    assert torch.equal(first, two_ranks.run(prepared, False)[0])


def _train_alike(name: str, ranks: RankPool, options: dict, optimization: Optimization | None = None) -> None:
    alone = training(0, 1, name, options, optimization)
    found = ranks.run(training, name, options, optimization)
    torch.testing.assert_close(torch.stack([x["loss"] for x in found]).mean(0), alone["loss"], rtol=1e-9, atol=1e-10)
    for key in alone.keys() - {"loss"}:
        assert all(torch.equal(x[key], found[0][key]) for x in found[1:]), f"{key} differs between ranks"
        torch.testing.assert_close(
            found[0][key], alone[key], rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}"
        )
