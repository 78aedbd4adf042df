"""Heads that are trained side by side end where torch's own layers and optimisers do, one by one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prototile.evaluation.heads import Head, StoredFeed, Training, train_heads

ROWS, CLASSES = 50, 4
DIMS = {"a": 6, "map": 8}


def problem() -> tuple[dict[str, Tensor], Tensor]:
    return {name: 2 * torch.randn(ROWS, d) + 1 for name, d in DIMS.items()}, torch.arange(ROWS) % CLASSES


class Plain(nn.Module):
    """One head, of torch's layers; `places` values of a channel share their batch norm."""

    def __init__(self, head: Head):
        super().__init__()
        d = DIMS[head.features]
        self.norm = nn.BatchNorm1d(d // head.places) if head.normed else None
        self.linear, self.places = nn.Linear(d, CLASSES), head.places
        first = 0.01 * torch.randn(CLASSES, d, generator=torch.Generator().manual_seed(0))
        self.linear.weight.data.copy_(first)
        self.linear.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x.unflatten(1, (-1, self.places))).flatten(1)
        return self.linear(x)


def alone(head: Head, feed: StoredFeed, training: Training) -> Plain:
    """Trained by torch's SGD, with the rate set by hand."""
    plain = Plain(head).train()
    norms = [] if plain.norm is None else list(plain.norm.parameters())
    groups = [
        {"params": list(plain.linear.parameters()), "weight_decay": training.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups[: 1 + bool(norms)], 1.0, training.momentum, nesterov=training.nesterov)
    for epoch in range(training.epochs):
        for step, (features, labels) in enumerate(feed.batches(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = head.rate * training.factor(epoch, step, len(feed))
            optimizer.zero_grad()
            F.cross_entropy(plain(features[head.features]), labels).backward()
            optimizer.step()
    return plain.eval()


HEADS = [
    Head("a", 0.1),
    Head("a", 1.0),
    Head("map", 0.3, normed=True),
    Head("map", 0.05, normed=True),
    Head("map", 0.2, normed=True, places=4),
    Head("map", 0.2),
]


@pytest.mark.parametrize("nesterov", [False, True])
def test_they_are_torchs(nesterov):
    features, labels = problem()
    training = Training(5, 16, nesterov=nesterov, weight_decay=1e-2, schedule=(2, 4))
    feed = StoredFeed(features, labels, training.batch)
    found = train_heads(HEADS, feed, DIMS, CLASSES, training)
    ranks = found.ranks(features, labels)
    for i, head in enumerate(HEADS):
        plain = alone(head, feed, training)
        scores = plain(features[head.features])
        wanted = (scores > scores.gather(1, labels[:, None])).sum(1)
        assert ranks[i].tolist() == wanted.tolist(), head
        bank = next(bank for bank in found.banks if i in bank.numbers)
        row = bank.numbers.tolist().index(i)
        torch.testing.assert_close(bank.weight[row], plain.linear.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bank.bias[row], plain.linear.bias, rtol=1e-4, atol=1e-5)
        if plain.norm is not None:
            torch.testing.assert_close(bank.scale[row], plain.norm.weight, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(bank.shift[row], plain.norm.bias, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(bank.variance, plain.norm.running_var)
    assert len({tuple(x) for x in ranks.tolist()}) > 3, "heads differ"


def test_larc_by_hand():
    """One step from weights w: the gradient is scaled by 0.001 |w| / |g|; the bias, which is zero, by nothing."""
    features, labels = problem()
    training = Training(1, ROWS, optimizer="larc", momentum=0.0)
    found = train_heads([Head("a", 2.0)], StoredFeed(features, labels, ROWS), DIMS, CLASSES, training).banks[0]
    first = 0.01 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(0))
    w, b = first.clone().requires_grad_(), torch.zeros(CLASSES, requires_grad=True)
    F.cross_entropy(features["a"] @ w.T + b, labels).backward()
    expected = first - 2.0 * w.grad * 0.001 * first.norm() / (w.grad.norm() + 1e-8)
    torch.testing.assert_close(found.weight[0].detach(), expected)
    torch.testing.assert_close(found.bias[0].detach(), -2.0 * b.grad)


def test_schedules():
    steps = Training(10, 1, schedule=(3, 6))
    assert [round(steps.factor(e, 0, 5), 9) for e in (0, 2, 3, 5, 6, 9)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cosine = Training(10, 1)
    assert cosine.factor(0, 4, 5) == 1, "the epoch's rate"
    assert cosine.factor(5, 0, 5) == pytest.approx(0.5)
    falling = Training(10, 1, final=0.01, every_step=True)
    assert falling.factor(5, 0, 5) == pytest.approx(0.505)
    assert falling.factor(9, 4, 5) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 0.98)) / 2)


def test_an_epoch_sees_every_image_once():
    features, labels = {"a": torch.arange(10.0)[:, None]}, torch.arange(10)
    feed = StoredFeed(features, labels, 4, rows=torch.tensor([1, 3, 5, 7, 9]), seed=1)
    epochs = [[(x["a"][:, 0].tolist(), y.tolist()) for x, y in feed.batches(epoch)] for epoch in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    seen = [value for x, y in epochs[2] for value in x]
    assert sorted(seen) == [1, 3, 5, 7, 9]
    assert all(x == y for x, y in epochs[2])
    assert len(feed) == 2


def test_mirrored_images_are_drawn_half_of_the_time():
    features, labels = {"a": torch.zeros(1000, 1)}, torch.zeros(1000, dtype=torch.long)
    feed = StoredFeed(features, labels, 100, mirrored={"a": torch.ones(1000, 1)})
    means = [torch.cat([x["a"] for x, _ in feed.batches(epoch)]).mean().item() for epoch in range(2)]
    assert means[0] != means[1]
    assert all(abs(mean - 0.5) < 0.06 for mean in means)
    assert not features["a"].any()


def test_a_last_batch_of_one_image_has_no_variance():
    features, labels = problem()
    feed = StoredFeed(features, labels, ROWS - 1)
    found = train_heads([Head("a", 0.1, normed=True)], feed, DIMS, CLASSES, Training(2, ROWS - 1))
    assert found.banks[0].weight.isfinite().all()


def test_of_equal_scores_the_first_class():
    features, labels = {"a": torch.zeros(3, 6)}, torch.tensor([0, 1, 3])
    found = train_heads([Head("a", 0.1)], StoredFeed(features, labels, 3), {"a": 6}, 4, Training(1, 3, momentum=0.0))
    found.banks[0].bias.data.zero_()
    assert found.ranks(features, labels).tolist() == [[0, 1, 3]]


def test_what_is_refused():
    with pytest.raises(ValueError, match="an epoch and an image at least"):
        Training(0, 1)
