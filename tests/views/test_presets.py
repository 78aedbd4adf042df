"""Presets: the facts of the papers, in one table, against what the presets give."""

from dataclasses import dataclass

import pytest

from prototile.schedules import Progress
from prototile.views import (
    CIFAR10,
    IMAGENET,
    PRESETS,
    Augmentation,
    Blocks,
    FixedBlocks,
    Group,
    RandomDrop,
    SharedDrop,
    SpreadBlocks,
    presets,
    small,
)
from prototile.views.presets import preset

DINO, MSN, MOCO = (0.4, 0.4, 0.2, 0.1), (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.4, 0.1)
SIMCLR = (0.8, 0.8, 0.8, 0.2)
OFTEN, SELDOM = 1.0, 0.1  # BYOL's blur
SOFT, CLEAR = "bicubic", "bilinear"


@dataclass(frozen=True)
class Fact:
    """`count` equal views: size, scale, jitter, and the probabilities of the rest (jitter 0.8, grey 0.2, flip 0.5)."""

    count: int
    size: int
    scale: tuple[float, float]
    jitter: tuple[float, float, float, float] | None
    blur: float = 0.0
    solarize: float = 0.0
    interpolation: str = SOFT
    jitter_probability: float = 0.8
    gray: float = 0.2


def pair(scale: tuple[float, float]) -> list[Fact]:
    return [Fact(1, 224, scale, DINO, OFTEN), Fact(1, 224, scale, DINO, SELDOM, solarize=0.2)]


def masked_siamese(focal: bool = True) -> list[list[Fact]]:
    view = Fact(1, 224, (0.3, 1.0), MSN, 0.5, interpolation=CLEAR)
    return [[view], [view], *([[Fact(10, 96, (0.05, 0.3), MSN, 0.5, interpolation=CLEAR)]] if focal else [])]


ASYMMETRIC = [pair((0.08, 1.0))]
FACTS: dict[str, list[list[Fact]]] = {
    "simclr": [[Fact(2, 224, (0.08, 1.0), SIMCLR, 0.5)]],
    "vicreg": ASYMMETRIC,
    "barlow_twins": ASYMMETRIC,
    "simsiam": [[Fact(2, 224, (0.2, 1.0), MOCO, 0.5, interpolation=CLEAR)]],
    "mmcr": [[Fact(2, 224, (0.08, 1.0), DINO, OFTEN)]],
    "swav": [
        [Fact(2, 224, (0.14, 1.0), SIMCLR, 0.5, interpolation=CLEAR)],
        [Fact(6, 96, (0.05, 0.14), SIMCLR, 0.5, interpolation=CLEAR)],
    ],
    "dino": [pair((0.4, 1.0)), [Fact(8, 96, (0.05, 0.4), DINO, 0.5)]],
    "ibot": [pair((0.25, 1.0)), [Fact(10, 96, (0.05, 0.25), DINO, 0.5)]],
    "dinov2": [pair((0.32, 1.0)), [Fact(8, 96, (0.05, 0.32), DINO, 0.5)]],
    "msn": masked_siamese(),
    "pmsn": masked_siamese(),
    "pmsn_toy": [[Fact(1, 32, (0.5, 1.0), MSN, interpolation=CLEAR)]] * 2,
    "excb": [pair((0.26, 1.0)), [Fact(6, 96, (0.05, 0.26), DINO, 0.5)]],  # where the run begins
    "mae": [[Fact(1, 224, (0.2, 1.0), None, gray=0.0)]],
    "data2vec": [[Fact(1, 224, (0.08, 1.0), (0.4, 0.4, 0.4, 0.0), jitter_probability=1.0, gray=0.0)]],
}
NOT_MASKED = {"simclr", "vicreg", "barlow_twins", "simsiam", "mmcr", "swav", "dino", "excb"}
MASKS = {
    "ibot": [Blocks(((0.0, 0.0), (0.1, 0.5))), None],
    "dinov2": [SpreadBlocks(0.5, (0.1, 0.5)), None],
    "msn": [None, SharedDrop(0.15), None],
    "pmsn": [None, SharedDrop(0.15), None],
    "pmsn_toy": [None, SharedDrop(0.05)],
    "mae": [RandomDrop(0.75)],
    "data2vec": [FixedBlocks(120 / 196, 16 / 196)],
}


def facts(group: Group) -> list[Fact]:
    """What a group is, its equal neighbours counted together."""
    out: list[Fact] = []
    for view in group.views:
        assert view.ratio == (3 / 4, 4 / 3)
        assert view.flip == 0.5
        assert view.blur is None or view.blur.sigma == (0.1, 2.0)
        jitter = view.jitter
        fact = Fact(
            1,
            view.size,
            view.scale,
            jitter and (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue),
            view.blur.probability if view.blur else 0.0,
            view.solarize,
            view.interpolation,
            jitter.probability if jitter else 0.8,
            view.gray,
        )
        if out and Fact(**{**vars(out[-1]), "count": 1}) == fact:
            fact = Fact(**{**vars(fact), "count": out.pop().count + 1})
        out.append(fact)
    return out


def test_the_table_is_complete():
    assert set(FACTS) == set(PRESETS) == NOT_MASKED | set(MASKS)


@pytest.mark.parametrize("name", PRESETS)
def test_published_views(name):
    augmentation = preset(name)
    assert (augmentation.normalization, augmentation.colour) == (IMAGENET, "exact")
    assert [facts(group) for group in augmentation.at(Progress(0, 100)).groups] == FACTS[name]
    assert [group.masks for group in augmentation.groups] == MASKS.get(name, [None] * len(augmentation.groups))
    assert {group.patch for group in augmentation.groups} == {4 if name == "pmsn_toy" else 16}
    assert augmentation.follows_the_run == (name == "excb")


@pytest.mark.parametrize(("step", "smallest"), [(0, 0.26), (25, 0.14 + 0.06 * (1 + 0.5**0.5)), (50, 0.2), (100, 0.14)])
def test_scales_of_excb_follow_a_cosine(step, smallest):
    groups = preset("excb").at(Progress(step, 100)).groups
    assert all(view.scale == pytest.approx((smallest, 1.0)) for view in groups[0].views)
    assert all(view.scale == pytest.approx((0.05, smallest)) for view in groups[1].views)


def sizes(augmentation: Augmentation) -> list[tuple[int, int]]:
    return [(len(group.views), group.size) for group in augmentation.groups]


def test_what_papers_vary():
    assert presets.simclr(strength=0.5).views[0].jitter == presets.msn().views[0].jitter
    assert sizes(presets.mmcr(views=5)) == [(5, 224)]
    best = presets.dino(global_scale=(0.25, 1.0), local_scale=(0.05, 0.25), local_views=10)
    assert [view.scale for view in best.views] == [(0.25, 1.0)] * 2 + [(0.05, 0.25)] * 10
    assert best.views == preset("ibot").views
    assert presets.swav(local_views=0).groups == preset("swav").groups[:1]
    assert presets.msn(random_views=2, focal_views=0, drop=0.5).groups[1].masks == SharedDrop(0.5)
    assert sizes(presets.msn(random_views=2, focal_views=0)) == [(1, 224), (2, 224)]
    assert presets.mae(drop=0.6).groups[0].masks == RandomDrop(0.6)


@pytest.mark.parametrize(("patch", "local"), [(8, 96), (14, 98), (16, 96), (32, 96)])
def test_patches_tile_every_view(patch, local):
    for augmentation in (presets.ibot(patch=patch), presets.dinov2(patch=patch)):
        assert [group.size for group in augmentation.groups] == [224, local]
        assert all(group.size % group.patch == 0 for group in augmentation.groups)
        assert {group.patch for group in augmentation.groups} == {patch}


@pytest.mark.parametrize("name", PRESETS)
def test_small(name):
    full, reduced = preset(name), small(preset(name), normalization=CIFAR10)
    assert not reduced.follows_the_run
    assert reduced.normalization == CIFAR10
    assert small(full).normalization == IMAGENET
    largest = max(group.size for group in full.groups)
    for before, after in zip(full.groups, reduced.groups, strict=True):
        assert after.size == (32 if before.size == largest else 16)
        assert (after.patch, after.size % after.patch) == (4, 0)
        assert (after.masks, len(after.views)) == (before.masks, len(before.views))
        for old, new in zip(before.views, after.views, strict=True):
            assert (new.blur, new.solarize) == (None, 0.0)
            assert (new.jitter, new.gray, new.flip) == (old.jitter, old.gray, old.flip)
            low, high = (0.0, 0.0) if old.follows_the_run else old.scale
            least, most = (0.3, 1.0) if after.size == 32 else (0.1, 0.3)
            assert new.scale == (max(low, least), max(high, most))


def test_small_in_other_sizes():
    assert sizes(small(preset("swav"), size=64, local_size=24, patch=8)) == [(2, 64), (6, 24)]
    with pytest.raises(ValueError, match="patches of 5 do not tile views of 32 pixels"):
        small(preset("mae"), patch=5)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"there is no preset 'imsiam': did you mean 'simsiam'\? There are simclr, "):
        preset("imsiam")
    with pytest.raises(ValueError, match="no preset 'barlow-twins': did you mean 'barlow_twins'"):
        preset("barlow-twins")
    with pytest.raises(ValueError, match=r"no preset '123': There are simclr, .*data2vec"):
        preset("123")


def test_small_with_crops_that_leave_more():
    groups = small(preset("dino"), smallest=0.6).groups
    assert {view.scale for view in groups[0].views} == {(0.6, 1.0)}
    assert {view.scale for view in groups[1].views} == {(0.2, 0.6)}
    with pytest.raises(ValueError, match="smallest share of the area"):
        small(preset("dino"), smallest=0.0)
