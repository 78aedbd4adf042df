"""Masks: counts, shapes and shares against their definitions, and against samplers written from the papers.

Statistical tests are seeded; p-values must be above 0.001, z-scores below 4.5 where the largest of many is meant.
"""

import math
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from prototile.views.masks import (
    Blocks,
    Draw,
    FixedBlocks,
    Generators,
    Hidden,
    Masks,
    RandomDrop,
    SharedDrop,
    SpreadBlocks,
)

LEAST_P, LARGEST_Z = 1e-3, 4.5
ALL = [SharedDrop(0.15), RandomDrop(), Blocks(), SpreadBlocks(), FixedBlocks()]


def hidden(masks: Masks, views: int, grid: int, draw: Draw, seed: int = 0) -> Hidden:
    return masks(views, grid, draw, Generators.of(seed, draw))


def mask(masks: Masks, views: int, grid: int, draw: Draw, seed: int = 0) -> np.ndarray:
    out = hidden(masks, views, grid, draw, seed)
    assert out.keep is None
    assert out.mask is not None
    assert out.mask.shape == (views, len(draw.numbers), grid * grid)
    return out.mask


def keep(masks: Masks, views: int, grid: int, draw: Draw, seed: int = 0) -> np.ndarray:
    out = hidden(masks, views, grid, draw, seed)
    assert out.mask is None
    assert out.keep is not None
    assert (np.diff(np.sort(out.keep)) > 0).all()  # no patch twice
    assert out.keep.min() >= 0
    assert out.keep.max() < grid * grid
    return out.keep


def taken(draw: Draw, places: np.ndarray | slice) -> Draw:
    """Some of the draw's images: what one rank sees of a batch."""
    return replace(draw, numbers=draw.numbers[places], rows=draw.rows[places])


def published_blocks(wanted: float, grid: int, smallest: int, largest: float, rng: random.Random) -> set[int]:
    """Block masking as BEiT, iBOT and DINOv2 publish it, with sets of patches."""
    covered: set[int] = set()
    while len(covered) < wanted:
        room = min(wanted - len(covered), largest)
        for _ in range(10):
            area = rng.uniform(smallest, room)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if not (h < grid and w < grid):
                continue
            top, left = rng.randint(0, grid - h), rng.randint(0, grid - w)
            block = {row * grid + column for row in range(top, top + h) for column in range(left, left + w)}
            if 0 < len(block - covered) <= room:
                covered |= block
                break
        else:
            break
    return covered


def as_mask(covered: set[int], grid: int) -> np.ndarray:
    out = np.zeros(grid * grid, bool)
    out[list(covered)] = True
    return out


def shapes(masks: np.ndarray, grid: int) -> list[np.ndarray]:
    """Of masks n x (g * g): masked patches, connected components, edges between masked and not, rows that are hit."""
    images = masks.reshape(-1, grid, grid)
    components = np.array([ndimage.label(image)[1] for image in images])
    edges = (images[:, 1:] != images[:, :-1]).sum((1, 2)) + (images[:, :, 1:] != images[:, :, :-1]).sum((1, 2))
    return [images.sum((1, 2)), components, edges, images.any(2).sum(1)]


def assert_same_law(ours: np.ndarray, theirs: np.ndarray, grid: int) -> None:
    for a, b in zip(shapes(ours, grid), shapes(theirs, grid), strict=True):
        assert stats.ks_2samp(a, b, method="asymp").pvalue > LEAST_P


# --- drops


@pytest.mark.parametrize(
    ("ratio", "grid", "kept"),
    [(0.15, 14, 166), (0.5, 14, 98), (0.05, 8, 60), (0.75, 14, 49), (0.7, 10, 30), (0.0, 8, 64), (0.99, 2, 1)],
)
@pytest.mark.parametrize("kind", [SharedDrop, RandomDrop])
def test_how_many_are_kept(kind, ratio, grid, kept):
    assert keep(kind(ratio), 2, grid, Draw.alone(3)).shape == (2, 3, kept)


def test_a_shared_drop_is_shared():
    """By views, images and ranks of one step, and by nothing else."""
    masks, whole = SharedDrop(0.15), Draw.alone(8, epoch=3, step=5)
    kept = keep(masks, 2, 14, whole)
    assert (kept == kept[0, 0]).all()
    for rank in (slice(4), slice(4, 8)):
        np.testing.assert_array_equal(keep(masks, 2, 14, taken(whole, rank)), kept[:, rank])
    for other in (Draw.alone(8, epoch=3, step=6), Draw.alone(8, epoch=4, step=5)):
        assert (keep(masks, 2, 14, other)[0, 0] != kept[0, 0]).any()
    assert (keep(masks, 2, 14, whole, seed=1)[0, 0] != kept[0, 0]).any()


def assert_uniform(kept: np.ndarray, patches: int) -> None:
    """Every patch is kept equally often, and comes first equally often; draws x m."""
    share = kept.shape[1] / patches
    counts = np.bincount(kept.ravel(), minlength=patches)
    z = (counts - len(kept) * share) / np.sqrt(len(kept) * share * (1 - share))
    assert np.abs(z).max() < LARGEST_Z
    assert stats.chi2.sf((z**2).sum() * (patches - 1) / patches, patches - 1) > LEAST_P
    assert stats.chisquare(np.bincount(kept[:, 0], minlength=patches)).pvalue > LEAST_P


def test_a_shared_drop_is_uniform_over_steps():
    assert_uniform(
        np.concatenate([keep(SharedDrop(0.15), 1, 4, Draw.alone(1, 0, step))[0] for step in range(2000)]), 16
    )


def test_random_drops_are_uniform_and_each_views_own():
    kept = keep(RandomDrop(), 2, 14, Draw.alone(3000))
    assert kept.shape == (2, 3000, 49)
    assert_uniform(kept.reshape(-1, 49), 196)
    sorted_rows = np.sort(kept.reshape(-1, 49))
    assert len(np.unique(sorted_rows, axis=0)) == 6000
    overlap = np.array([len(np.intersect1d(a, b)) for a, b in zip(*kept, strict=True)])
    law = stats.hypergeom(196, 49, 49)
    assert abs(overlap.mean() - law.mean()) < 4 * law.std() / np.sqrt(len(overlap))


# --- iBOT


def test_half_of_the_views_are_unmasked():
    masked = mask(Blocks(), 2, 14, Draw.alone(1500)).any(-1)
    assert abs(masked.mean() - 0.5) < 4 * 0.5 / np.sqrt(masked.size)
    both = (masked[0] & masked[1]).mean()  # independent between the views of an image
    assert abs(both - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1500)


def test_ratios_stay_in_their_ranges():
    count = mask(Blocks(((0.1, 0.5),)), 2, 14, Draw.alone(500)).sum(-1)
    assert count.max() <= 0.5 * 196 + 1  # the last patch may fill a fraction of one
    assert count.min() > 0
    for ratio in (0.0, 0.1, 0.3, 0.5):
        count = mask(Blocks(((ratio, ratio),)), 1, 14, Draw.alone(200)).sum(-1)
        assert count.max() <= ratio * 196
        assert count.mean() > 0.9 * ratio * 196 - 1


@pytest.mark.parametrize("grid", [14, 8, 4])
def test_blocks_have_the_published_law(grid):
    ours = mask(Blocks(), 2, grid, Draw.alone(1000)).reshape(-1, grid * grid)
    rng = random.Random(0)

    def theirs() -> np.ndarray:
        wanted = rng.choice([0.0, rng.uniform(0.1, 0.5)]) * grid * grid
        return as_mask(published_blocks(wanted, grid, (grid // 3) ** 2, math.inf, rng), grid)

    assert_same_law(ours, np.stack([theirs() for _ in range(2000)]), grid)


def test_no_block_reaches_from_side_to_side():
    """Of 2 x 2 patches two are masked: no block of two, which fills a row, but two of one; all pairs equally likely."""
    images = mask(Blocks(((0.5, 0.5),)), 1, 2, Draw.alone(400)).reshape(-1, 2, 2)
    diagonal = images[:, 0, 0] == images[:, 1, 1]
    assert (images.sum((1, 2)) <= 2).all()
    two = images.sum((1, 2)) == 2
    assert abs(diagonal[two].mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / two.sum())


def block_sizes(smallest: int, largest: float, grid: int) -> set[tuple[int, int]]:
    """Heights and widths of rectangles with an area in this range and an aspect in [0.3, 1 / 0.3]."""
    area = np.linspace(smallest, largest, 400)[:, None]
    aspect = np.exp(np.linspace(math.log(0.3), -math.log(0.3), 400))
    sides = np.stack([np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))], -1).reshape(-1, 2)
    return {(int(h), int(w)) for h, w in np.unique(sides, axis=0) if max(h, w) < grid}


def holds_a_block(image: np.ndarray, sizes: set[tuple[int, int]]) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view
    return any(windows(image, size).all((2, 3)).any() for size in sizes)


@pytest.mark.parametrize(
    ("masks", "smallest"), [(Blocks(((0.1, 0.5),)), 16), (SpreadBlocks(1.0), 4), (FixedBlocks(), 16)]
)
def test_masks_hold_whole_blocks(masks, smallest):
    """The first block at least is a full rectangle of a permitted size."""
    images = mask(masks, 1, 14, Draw.alone(100)).reshape(-1, 14, 14)
    sizes = block_sizes(smallest, 0.62 * 196, 14)
    assert all(holds_a_block(image, sizes) for image in images)


def test_scattered_patches_hold_no_blocks():
    """The check above can fail."""
    sizes = block_sizes(16, 0.62 * 196, 14)
    scattered = np.random.default_rng(0).random((100, 14, 14)) < 0.4
    assert not any(holds_a_block(image, sizes) for image in scattered)


# --- DINOv2


def test_a_share_of_the_batch_is_masked():
    for views, images in ((2, 64), (2, 3), (3, 5), (1, 1)):
        masked = mask(SpreadBlocks(), views, 14, Draw.alone(images)).any(-1)
        assert masked.sum() == int(views * images * 0.5)
    assert not mask(SpreadBlocks(0.0), 2, 14, Draw.alone(4)).any()
    assert mask(SpreadBlocks(1.0), 2, 14, Draw.alone(4)).any(-1).all()


def test_ratios_are_spread():
    """Of m masked views the i-th smallest has at most int(n upper edge of the i-th of m intervals) patches."""
    views, images = 2, 64
    edges = np.linspace(0.1, 0.5, images + 1)
    for step in range(5):
        counts = np.sort(mask(SpreadBlocks(), views, 14, Draw.alone(images, step=step)).sum(-1).ravel())[-images:]
        assert (counts <= (196 * edges[1:]).astype(int)).all()
        # blocks rarely leave more than a few patches unmasked: what is masked follows the spread closely
        assert (counts >= (196 * edges[:-1]).astype(int) - 12).all()
        assert np.abs(counts - 196 * edges[1:]).mean() < 3


def test_which_views_are_masked_is_uniform():
    masked = np.stack([mask(SpreadBlocks(), 2, 6, Draw.alone(4, step=step)).any(-1) for step in range(600)])
    z = (masked.mean(0) - 0.5) / np.sqrt(0.25 / 600)
    assert np.abs(z).max() < LARGEST_Z


@pytest.mark.parametrize(("ratios", "grid"), [((0.1, 0.5), 14), ((0.6, 0.6), 4)])
def test_spread_blocks_have_the_published_law(ratios, grid):
    """Also where the limit of a block, half of the patches, matters."""
    images = 50
    masks = SpreadBlocks(ratios=ratios)
    ours = np.concatenate(
        [mask(masks, 2, grid, Draw.alone(images, step=step)).reshape(-1, grid * grid) for step in range(30)]
    )
    rng = random.Random(0)
    edges = np.linspace(*ratios, images + 1)

    def theirs(place: int) -> np.ndarray:
        wanted = int(grid * grid * rng.uniform(edges[place], edges[place + 1]))
        return as_mask(published_blocks(wanted, grid, 4, grid * grid / 2, rng), grid)

    masked = np.stack([theirs(place) for _ in range(30) for place in range(images)])
    assert_same_law(ours[ours.any(1)], masked, grid)


# --- data2vec


@pytest.mark.parametrize(("grid", "count"), [(14, 120), (8, 39)])
def test_a_fixed_number_is_masked(grid, count):
    assert (mask(FixedBlocks(), 2, grid, Draw.alone(200)).sum(-1) == count).all()


def test_fixed_blocks_have_the_published_law():
    ours = mask(FixedBlocks(), 2, 14, Draw.alone(500)).reshape(-1, 196)
    rng = random.Random(0)

    def theirs() -> np.ndarray:
        covered = published_blocks(120, 14, 16, math.inf, rng)
        return as_mask(covered | set(rng.sample(sorted(set(range(196)) - covered), 120 - len(covered))), 14)

    assert_same_law(ours, np.stack([theirs() for _ in range(1000)]), 14)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (1.0, 196), (0.3, 59)])
def test_fixed_blocks_at_the_ends(ratio, count):
    assert (mask(FixedBlocks(ratio, smallest=0.0), 1, 14, Draw.alone(5)).sum(-1) == count).all()


# --- keys


def equal(a: Hidden, b: Hidden, places: np.ndarray | slice = slice(None)) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            np.testing.assert_array_equal(x[:, places], y)


@pytest.mark.parametrize("masks", ALL, ids=lambda x: type(x).__name__)
def test_two_ranks_together_are_one(masks):
    whole = Draw.alone(16, epoch=1, step=2)
    together = hidden(masks, 2, 14, whole)
    equal(together, hidden(masks, 2, 14, whole))
    for places in (slice(8), slice(8, 16), np.array([3, 11, 0])):
        equal(together, hidden(masks, 2, 14, taken(whole, places)), places)


@pytest.mark.parametrize("masks", [RandomDrop(), Blocks(), FixedBlocks()], ids=lambda x: type(x).__name__)
def test_an_image_keeps_its_mask_in_any_batch(masks):
    numbers = np.array([7, 1000003, 42, 0])
    together = hidden(masks, 2, 14, Draw(1, 0, numbers, np.arange(4), 4))
    for i, number in enumerate(numbers):
        alone = hidden(masks, 2, 14, Draw(1, 9, np.array([number]), np.array([60]), 64))
        equal(together, alone, slice(i, i + 1))


@pytest.mark.parametrize("masks", ALL, ids=lambda x: type(x).__name__)
def test_other_epochs_and_seeds_have_other_masks(masks):
    def drawn(epoch: int, seed: int) -> np.ndarray:
        out = hidden(masks, 2, 14, Draw.alone(8, epoch), seed)
        return next(x for x in out if x is not None)

    assert (drawn(0, 0) != drawn(1, 0)).any()
    assert (drawn(0, 0) != drawn(0, 1)).any()


@pytest.mark.parametrize("masks", ALL, ids=lambda x: type(x).__name__)
def test_a_rank_without_images(masks):
    """The last batch of an epoch may end before a rank's rows begin."""
    out = hidden(masks, 2, 14, Draw(0, 0, np.empty(0, int), np.empty(0, int), 4))
    assert [x.shape[:2] for x in out if x is not None] == [(2, 0)]


def test_masks_are_values():
    for masks in ALL:
        assert pickle.loads(pickle.dumps(masks)) == masks


# --- what is refused


@pytest.mark.parametrize("kind", [SharedDrop, RandomDrop])
@pytest.mark.parametrize("ratio", [-0.1, 1.0, math.nan])
def test_bad_drops(kind, ratio):
    with pytest.raises(ValueError, match=rf"ratio of dropped patches must lie in \[0, 1\), got {ratio}"):
        kind(ratio)


@pytest.mark.parametrize("ranges", [(), ((0.5, 0.1),), ((0.0, 0.0), (0.5, 1.1)), ((-0.1, 0.5),)])
def test_bad_ranges(ranges):
    with pytest.raises(ValueError, match=r"ranges must be \(low, high\) with 0 <= low <= high <= 1"):
        Blocks(ranges)


@pytest.mark.parametrize(
    ("probability", "ratios"), [(1.1, (0.1, 0.5)), (-0.1, (0.1, 0.5)), (0.5, (0.5, 0.1)), (0.5, (0.1, 2.0))]
)
def test_bad_spreads(probability, ratios):
    with pytest.raises(ValueError, match=r"probability and ratios must lie in \[0, 1\], low before high"):
        SpreadBlocks(probability, ratios)


@pytest.mark.parametrize(("ratio", "smallest"), [(0.5, 0.6), (1.1, 0.1), (0.5, -0.1)])
def test_bad_fixed_blocks(ratio, smallest):
    with pytest.raises(ValueError, match="0 <= smallest <= ratio <= 1 must hold"):
        FixedBlocks(ratio, smallest)
