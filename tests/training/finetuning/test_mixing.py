"""RandAugment, random erasing, mixup and cutmix: timm's own numbers, seeded."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup

from prototile.training.finetuning import Mixing, RandAugment
from prototile.training.finetuning.mixing import _operations
from prototile.views import Engine
from prototile.views.masks import Draw
from prototile.views.randomness import Stream, generator

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def images(count: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side)


def pixels(side: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, side, side), np.uint8))


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8, smoothing=0.1), Mixing(cutmix=1.0), Mixing(0.8, 1.0, 0.1, 0.25)])
@pytest.mark.parametrize("seed", range(4))
def test_targets_sum_to_one_and_go_with_the_pixels(mixing, seed):
    """The share of a partner that pixels show is the share that its class has."""
    np.random.seed(seed)
    random.seed(seed)
    given = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 16).contiguous()
    mixed, targets = Mixing(mixing.mixup, mixing.cutmix, mixing.smoothing)(given, LABELS, 4)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    assert (targets >= 0).all()
    share = (mixed.mean((1, 2, 3)) - torch.arange(6.0)) / (5 - 2 * torch.arange(6.0))  # of the partner, 5 - i
    assert torch.allclose(share, share[0].expand(6), atol=1e-5)
    plain = torch.eye(4)[LABELS] * (1 - mixing.smoothing) + mixing.smoothing / 4
    assert torch.allclose(targets, (1 - share[0]) * plain + share[0] * plain.flip(0), atol=1e-5)


def test_it_is_timms():
    given = images()
    np.random.seed(1)
    wanted, targets = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=4)(given.clone(), LABELS)
    np.random.seed(1)
    found = Mixing(0.8, 1.0, 0.1)(given, LABELS, 4)
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[1], targets)


def test_half_of_the_batches_are_cut():
    np.random.seed(0)
    given = torch.zeros(2, 3, 8, 8)
    given[1] = 1
    cut = sum(len(Mixing(0.8, 1.0)(given, LABELS[:2], 4)[0][0].unique()) == 2 for _ in range(400))
    assert 140 < cut < 260


def test_a_quarter_is_erased_to_noise():
    random.seed(0)
    given = torch.full((800, 3, 16, 16), 7.0)
    found, targets = Mixing(erasing=0.25)(given, torch.zeros(800, dtype=torch.long), 3)
    erased = (found != 7).any(1)
    assert 160 < int(erased.flatten(1).any(1).sum()) < 240
    share = erased[erased.flatten(1).any(1)].float().mean().item()
    assert 0.1 < share < 0.25  # boxes of 2% to 33%
    noise = found[found != 7]
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(targets, torch.eye(3)[torch.zeros(800, dtype=torch.long)])
    assert (given == 7).all()


def test_an_odd_batch_has_no_pairs():
    with pytest.raises(ValueError, match="a rank's batch must be even, got 5"):
        Mixing(0.8)(images(5), LABELS[:5], 4)


@pytest.mark.parametrize("options", [{"mixup": -1.0}, {"cutmix": -0.1}, {"smoothing": 1.0}, {"erasing": 1.1}])
def test_settings_that_cannot_be(options):
    with pytest.raises(ValueError, match=r"parameters of Beta laws|smoothing lies in"):
        Mixing(**options)


def test_pixels_are_timms_for_the_same_seed():
    policy, key = RandAugment(), (0, Stream.POLICY, 3, 5)
    options = {"translate_const": 10, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    seed = int(generator(*key).integers(2**32))
    random.seed(seed)
    np.random.seed(seed)
    wanted = np.array(theirs(Image.fromarray(pixels().permute(1, 2, 0).numpy())))
    assert np.array_equal(policy(pixels(), generator(*key)).permute(1, 2, 0).numpy(), wanted)


def test_the_recipes_line_means_what_it_says():
    operations = _operations(RandAugment(), 224)
    assert operations.num_layers == 2
    assert len(operations.ops) == 15
    names = {operation.name for operation in operations.ops}
    assert names >= {"PosterizeIncreasing", "ColorIncreasing", "TranslateXRel", "SolarizeAdd"}
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in operations.ops} == {(0.5, 9, 0.5)}


def test_nothing_is_left_of_no_bits():
    """A strength of ten leaves none; one in fifty posterised images has it."""
    operations = _operations(RandAugment("rand-m10-inc1-p1"), 24).ops
    posterize = next(op for op in operations if op.name == "PosterizeIncreasing")
    image = Image.fromarray(pixels().permute(1, 2, 0).numpy())
    assert not np.array(posterize(image)).any()
    posterize.magnitude = 5
    assert np.array_equal(np.array(posterize(image)), np.array(image) & 0b11000000)


def test_global_generators_stay_where_they_are():
    random.seed(0)
    np.random.seed(0)
    before = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    policy = RandAugment()
    for number in range(5):
        policy(pixels(), generator(0, Stream.POLICY, 0, number))
    assert (random.random(), np.random.rand()) == before


def test_views_follow_from_seed_epoch_and_image_alone():
    from finetuning_cases import vit_recipe

    views = vit_recipe(1, rand_augment="rand-m9-mstd0.5-inc1").augmentation()
    plain = vit_recipe(1).augmentation()
    given = [pixels() for _ in range(4)]
    engine, numbers = Engine(views, seed=1), np.arange(4)
    together = engine.crop(given, Draw(2, 0, numbers, numbers, 4))[0].images
    alone = [
        Engine(views, 1).crop([given[i]], Draw(2, 0, numbers[i : i + 1], numbers[:1], 1))[0].images for i in range(4)
    ]
    assert torch.equal(together, torch.cat(alone, 1))
    other = engine.crop(given, Draw(3, 0, numbers, numbers, 4))[0].images
    assert not torch.equal(other, together)
    without = Engine(plain, 1).crop(given, Draw(2, 0, numbers, numbers, 4))[0].images
    assert not torch.equal(without, together)


def test_a_policy_that_is_none():
    with pytest.raises(ValueError, match="is no policy such as"):
        RandAugment("auto-m9")
