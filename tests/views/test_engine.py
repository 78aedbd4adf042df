"""The engine: keys, groups, an independent pipeline from torchvision's parts; and finishing many images at once."""

import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from prototile.schedules import Progress
from prototile.types import Views
from prototile.views import (
    CIFAR10,
    IMAGENET,
    PRESETS,
    Augmentation,
    Blur,
    Draw,
    Engine,
    Group,
    Jitter,
    Policy,
    RandomDrop,
    View,
    preset,
    small,
)
from prototile.views import finish as finish_module
from prototile.views.draws import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GRAY,
    HUE,
    NOTHING,
    NUMBERS,
    SATURATION,
    SLOTS,
    SOLARIZE,
    Boxes,
    Looks,
    draw_boxes,
    draw_looks,
)
from prototile.views.finish import finish
from prototile.views.randomness import Stream, generator

BOUND = 4e-5  # of normalised pixels, which is 1e-5 of pixels; measured: 7e-6
STATISTICS = list(IMAGENET.mean), list(IMAGENET.std)
RICH = View(24, (0.1, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.2, probability=0.7), gray=0.3, blur=Blur(0.5), solarize=0.3)


def smooth_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Colours that change slowly, some noise, and an edge: uint8, channels last in memory."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=rng)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    image += 0.03 * torch.randn(3, height, width, generator=rng)
    image[:, height // 3 :, width // 2 :] *= 0.6
    return image.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().permute(2, 0, 1)


IMAGES = [smooth_image(h, w, seed) for seed, (h, w) in enumerate([(60, 80), (90, 40), (33, 33), (50, 200), (70, 71)])]


def augmentation(*views: View, **settings: object) -> Augmentation:
    return Augmentation((Group(views),), **settings)


def draw(numbers: list[int], epoch: int = 0, step: int = 0) -> Draw:
    return Draw(epoch, step, np.array(numbers, np.int64), np.arange(len(numbers)), len(numbers))


def assert_same_views(a: tuple[Views, ...], b: tuple[Views, ...], bound: float = 0.0) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.images, y.images, rtol=0, atol=bound)
        for hidden, other in ((x.mask, y.mask), (x.keep, y.keep)):
            assert (hidden is None) == (other is None)
            assert hidden is None or other is None or torch.equal(hidden, other)


# --- an independent pipeline


OPERATIONS = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
    BLUR: lambda x, sigma: tv.gaussian_blur(x, [2 * max(1, int(np.ceil(4 * sigma))) + 1] * 2, [sigma, sigma]),
    GRAY: lambda x, _: tv.rgb_to_grayscale(x, num_output_channels=3),
}


def pipeline(image: Tensor, view: View, box: tuple[int, ...], flip: bool, look: Looks) -> tuple[Tensor, Tensor]:
    """One view by torchvision's functions, and where solarising could go either way for float32's sake."""
    mode = InterpolationMode[view.interpolation.upper()]
    crop = tv.resized_crop(image.contiguous(), *box, [view.size, view.size], mode, antialias=True)
    x = tv.to_dtype(tv.horizontal_flip(crop) if flip else crop, torch.float32, scale=True)
    unsure = torch.zeros_like(x, dtype=torch.bool)
    (order,), (factors,) = look.order.tolist(), look.factors.tolist()
    for operation in order:
        if operation == SOLARIZE:
            unsure = (x - 128 / 255).abs() < 1e-5
            x = tv.solarize(x, 128 / 255)
        elif operation != NOTHING:
            x = OPERATIONS[operation](x, factors[operation] if operation <= BLUR else None)
    return tv.normalize(x, *STATISTICS), unsure


def drawn(engine: Engine, views: tuple[View, ...], first: int, images: list[Tensor], keys: Draw) -> tuple[Boxes, Looks]:
    count = len(engine.augmentation.views)
    rows = [generator(engine.seed, Stream.VIEWS, keys.epoch, int(n)).random((count, NUMBERS)) for n in keys.numbers]
    uniform = np.stack(rows)[:, first : first + len(views)]
    heights, widths = np.array([image.shape[1:] for image in images]).T
    return draw_boxes(views, uniform, heights, widths), draw_looks(views, uniform)


@pytest.mark.parametrize("name", ["dino", "swav", "pmsn_toy"])
def test_equals_a_pipeline_of_torchvision(name):
    images, keys = [smooth_image(180, 240), smooth_image(130, 110, 1)], draw([11, 12], epoch=3)
    engine = Engine(preset(name), seed=5)
    first, sure = 0, 0
    for group, views in zip(engine.augmentation.groups, engine(images, keys), strict=True):
        boxes, looks = drawn(engine, group.views, first, images, keys)
        first += len(group.views)
        for v, view in enumerate(group.views):
            for b, image in enumerate(images):
                box = tuple(int(side[b, v]) for side in (boxes.top, boxes.left, boxes.height, boxes.width))
                row = len(images) * v + b
                expected, unsure = pipeline(image, view, box, bool(boxes.flip[b, v]), looks[row : row + 1])
                sure += int((~unsure).sum()) / unsure.numel()
                torch.testing.assert_close(views.images[v, b][~unsure], expected[~unsure], rtol=0, atol=BOUND)
    assert sure > 0.999 * first * len(images)


# --- keys


ENGINE = Engine(small(preset("ibot")), seed=1)


def test_an_image_depends_on_its_key_only():
    numbers = [40, 3, 10**12, 7, 8]
    together = ENGINE(IMAGES, draw(numbers, epoch=2))
    order = [3, 1, 4, 0, 2]
    shuffled = ENGINE([IMAGES[i] for i in order], draw([numbers[i] for i in order], epoch=2, step=9))
    for a, b in zip(together, shuffled, strict=True):
        torch.testing.assert_close(a.images[:, order], b.images, rtol=0, atol=BOUND)
        assert a.mask is None or b.mask is None or torch.equal(a.mask[:, order], b.mask)
    for i, number in enumerate(numbers):
        alone = ENGINE([IMAGES[i]], draw([number], epoch=2, step=5))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a.images[:, i : i + 1], b.images, rtol=0, atol=BOUND)


def test_crops_do_not_depend_on_the_batch_at_all():
    engine = Engine(augmentation(RICH, RICH), seed=1)
    (together,) = engine.crop(IMAGES, draw([1, 2, 3, 4, 5]))
    for i, image in enumerate(IMAGES):
        (alone,) = engine.crop([image], draw([i + 1], step=4))
        assert torch.equal(together.images[:, i : i + 1], alone.images)
        np.testing.assert_array_equal(together.looks.order[i::5], alone.looks.order)
        np.testing.assert_array_equal(together.looks.factors[i::5], alone.looks.factors)


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    keys = draw([1, 2, 3, 4, 5])
    before = ENGINE(IMAGES, keys)
    assert_same_views(before, pickle.loads(pickle.dumps(ENGINE))(IMAGES, keys))
    for other, other_keys in (
        (ENGINE, replace(keys, epoch=1)),
        (replace(ENGINE, seed=2), keys),
        (ENGINE, draw([6, 7, 8, 9, 10])),
    ):
        for a, b in zip(before, other(IMAGES, other_keys), strict=True):
            assert ((a.images - b.images).abs().amax((2, 3, 4)) > 0.1).all()


def test_views_of_an_image_differ():
    engine = Engine(augmentation(*[View(16, (0.1, 1.0))] * 4))
    (views,) = engine([IMAGES[0], IMAGES[0]], draw([1, 2]))
    flat = views.images.flatten(0, 1).flatten(1)
    assert (torch.cdist(flat, flat) + 99 * torch.eye(8)).min() > 1


def test_settings_do_not_move_each_other():
    """Crops stay where jitter changes, where the group is masked, and where views are added behind."""
    plain = replace(RICH, jitter=None, gray=0.0, blur=None, solarize=0.0)
    masked = Augmentation((Group((plain, plain), RandomDrop(), patch=8), Group((plain,))))
    keys = draw([1, 2, 3, 4, 5])
    expected = Engine(augmentation(RICH, RICH)).crop(IMAGES, keys)[0].images
    assert torch.equal(Engine(augmentation(plain, plain)).crop(IMAGES, keys)[0].images, expected)
    assert torch.equal(Engine(masked).crop(IMAGES, keys)[0].images, expected)


# --- groups


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("reduced", [False, True], ids=["full", "small"])
def test_shapes_of_all_presets(name, reduced):
    engine = Engine(small(preset(name)) if reduced else preset(name))
    views = engine([smooth_image(40, 50)], draw([0]), Progress(1, 10))
    for group, got in zip(engine.augmentation.groups, views, strict=True):
        assert got.images.shape == (len(group.views), 1, 3, group.size, group.size)
        assert got.images.dtype == torch.float32
        assert bool(got.images.isfinite().all())
        assert (got.mask is None and got.keep is None) == (group.masks is None)
        if got.mask is not None:
            assert got.mask.shape == (len(group.views), 1, (group.size // group.patch) ** 2)
        if got.keep is not None:
            assert got.keep.shape[:2] == (len(group.views), 1)
            assert int(got.keep.max()) < (group.size // group.patch) ** 2


def test_masks_travel_with_the_crops():
    keys = draw([0, 1, 2, 3, 4])
    engine = Engine(small(preset("mae")), seed=3)
    crops = engine.crop(IMAGES, keys)
    assert crops[0].keep is not None
    assert crops[0].keep.shape == (1, 5, 16)
    assert_same_views(tuple(engine.finish(x) for x in crops), engine(IMAGES, keys))


@pytest.mark.parametrize("name", ["dino", "ibot", "msn"])
def test_finishing_later_is_the_same(name):
    keys, engine = draw([0, 1, 2, 3, 4]), Engine(small(preset(name)), seed=3)
    later = tuple(engine.finish(pickle.loads(pickle.dumps(crops)).to("cpu")) for crops in engine.crop(IMAGES, keys))
    assert_same_views(later, engine(IMAGES, keys))


def test_excb_follows_the_run():
    engine, keys = Engine(preset("excb"), seed=2), draw([5])
    image = smooth_image(120, 120)
    got = []
    for step, smallest in ((0, 0.26), (50, 0.2), (100, 0.14)):
        crops = engine.crop([image], keys, Progress(step, 100))
        first, local = (
            tuple(replace(view, scale=scale) for view in group.views)
            for group, scale in zip(engine.augmentation.groups, ((smallest, 1.0), (0.05, smallest)), strict=True)
        )
        frozen = Engine(Augmentation((Group(first), Group(local))), seed=2)
        for a, b in zip(crops, frozen.crop([image], keys), strict=True):
            assert torch.equal(a.images, b.images)
        got.append(crops[1].images)
    assert not torch.equal(got[0], got[1])
    assert not torch.equal(got[1], got[2])
    with pytest.raises(ValueError, match="this augmentation follows the run: say how long it is"):
        engine.crop([image], keys)


def test_every_image_needs_a_key():
    with pytest.raises(ValueError, match="every image needs a key: 2 keys, more images"):
        ENGINE.crop(IMAGES, draw([1, 2]))
    with pytest.raises(ValueError, match="every image needs a key: 9 keys, 5 images"):
        ENGINE.crop(IMAGES, draw(range(9)))


# --- images


def test_memory_format_does_not_matter():
    keys = draw([1, 2, 3, 4, 5])
    assert not IMAGES[0].is_contiguous()
    for interpolation in ("bicubic", "bilinear"):
        engine = Engine(augmentation(replace(RICH, interpolation=interpolation)))
        assert_same_views(engine([image.contiguous() for image in IMAGES], keys), engine(IMAGES, keys))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_extreme_images(shape):
    """A constant image stays constant, whatever its shape."""
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, *shape).contiguous()
    plain = View(16, (0.05, 1.0))
    (views,) = Engine(augmentation(*[plain] * 20))([image], draw([0]))
    expected = tv.normalize(tv.to_dtype(image[:, :1, :1], torch.float32, scale=True), *STATISTICS)
    torch.testing.assert_close(views.images, expected.expand(20, 1, 3, 16, 16), rtol=0, atol=1e-6)
    for name in ("dino", "dinov2"):
        for views in Engine(small(preset(name)))([image], draw([0])):
            assert bool(views.images.isfinite().all())


def test_views_of_one_pixel():
    (views,) = Engine(augmentation(replace(RICH, size=1)))(IMAGES, draw([1, 2, 3, 4, 5]))
    assert views.images.shape == (1, 5, 3, 1, 1)
    assert bool(views.images.isfinite().all())


@pytest.mark.parametrize("name", ["dino", "mae", "ibot", "dinov2", "msn", "data2vec"])
def test_no_images(name):
    for views, group in zip(Engine(preset(name))([], draw([])), preset(name).groups, strict=True):
        assert views.images.shape == (len(group.views), 0, 3, group.size, group.size)


# --- finishing many images


def mixed(count: int = 120) -> tuple[Tensor, Looks]:
    """Images and looks with every operation and every order."""
    looks = draw_looks([RICH], np.random.default_rng(0).random((count, 1, NUMBERS)))
    images = torch.stack([smooth_image(24, 24, seed) for seed in range(count)])
    return images, looks


def unchanged(count: int) -> Looks:
    return Looks(np.full((count, SLOTS), NOTHING, np.int8), np.ones((count, 5), np.float32))


@pytest.mark.parametrize("method", ["exact", "linear"])
def test_many_images_are_as_each_alone(method):
    images, looks = mixed()
    together = finish(images, looks, IMAGENET, method)
    alone = [finish(images[i : i + 1], looks[i : i + 1], IMAGENET, method) for i in range(len(images))]
    assert_near_unless_solarized(together, torch.cat(alone), looks)


@pytest.mark.parametrize("method", ["exact", "linear"])
def test_chunks_do_not_matter(monkeypatch, method):
    images, looks = mixed()
    whole = finish(images, looks, IMAGENET, method)
    for chunk in (1, 7, 64):
        monkeypatch.setitem(finish_module._CHUNK_BYTES, "cpu", chunk * 4 * 3 * 24 * 24)
        assert_near_unless_solarized(finish(images, looks, IMAGENET, method), whole, looks)


def assert_near_unless_solarized(a: Tensor, b: Tensor, looks: Looks) -> None:
    """Solarised images may differ in a pixel in ten thousand, which lay on the threshold but for its last bit."""
    solarized = torch.from_numpy((looks.order == SOLARIZE).any(1))
    torch.testing.assert_close(a[~solarized], b[~solarized], rtol=0, atol=BOUND)
    assert ((a - b).abs() > BOUND).float().mean() < 1e-4


def test_operations_of_the_mixture():
    """The mixture above has what it claims, and operations are not lost when images are sorted and put back."""
    images, looks = mixed()
    assert all((looks.order == operation).any(1).sum() > 20 for operation in range(7))
    assert (looks.order == NOTHING).all(1).sum() > 3
    finished, plain = finish(images, looks, IMAGENET), finish(images, unchanged(len(images)), IMAGENET)
    same = (finished == plain).flatten(1).all(1)
    np.testing.assert_array_equal(same.numpy(), (looks.order == NOTHING).all(1))


@pytest.mark.parametrize("method", ["exact", "linear"])
@pytest.mark.parametrize("normalization", [IMAGENET, CIFAR10])
def test_nothing_at_all_is_normalisation(method, normalization):
    images = torch.randint(0, 256, (9, 3, 13, 17), dtype=torch.uint8)
    before = images.clone()
    expected = tv.normalize(
        tv.to_dtype(images, torch.float32, scale=True), list(normalization.mean), list(normalization.std)
    )
    torch.testing.assert_close(finish(images, unchanged(9), normalization, method), expected, rtol=0, atol=2e-6)
    assert torch.equal(images, before)


def test_crops_are_left_as_they_were():
    images, looks = mixed(10)
    before = images.clone()
    finish(images, looks, IMAGENET)
    assert torch.equal(images, before)


@pytest.mark.parametrize("method", ["exact", "linear"])
def test_autocast_does_not_reach_pixels(method):
    images, looks = mixed()
    expected = finish(images, looks, IMAGENET, method)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(finish(images, looks, IMAGENET, method), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["exact", "linear"])
def test_a_gpu_finishes_the_same_pixels(method):
    images, looks = mixed()
    on_gpu = finish(images.cuda(), looks, IMAGENET, method)
    assert on_gpu.is_cuda
    assert_near_unless_solarized(on_gpu.cpu(), finish(images, looks, IMAGENET, method), looks)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dino", "ibot", "mae"])
def test_a_gpu_takes_crops(name):
    engine, keys = Engine(preset(name), seed=3), draw([0, 1, 2, 3, 4])
    for crops in engine.crop(IMAGES, keys):
        near, far = engine.finish(crops), engine.finish(crops.pin_memory().to("cuda"))
        assert far.images.is_cuda
        assert_near_unless_solarized(far.images.cpu().flatten(0, 1), near.images.flatten(0, 1), crops.looks)
        for ours, theirs in ((near.mask, far.mask), (near.keep, far.keep)):
            assert ours is None or theirs is None or torch.equal(ours, theirs.cpu())


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.rand(3, 8, 8), r"torch.float32 of shape \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"shape \(1, 8, 8\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"shape \(8, 8, 3\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"shape \(8, 8\)"),
    ],
)
def test_what_are_no_images_is_refused(unchecked, image, said):
    """A float image in [0, 1] would become a black one."""
    with pytest.raises(ValueError, match=said):
        ENGINE.crop([image], draw([1]))


def test_images_are_read_as_they_are_needed(monkeypatch):
    """Not all of a batch at a time."""
    monkeypatch.setattr("prototile.views.engine._PORTION_BYTES", 1)
    alive = []

    def read():
        for image in IMAGES:
            copy = image.clone()
            alive.append(weakref.ref(copy))
            assert sum(reference() is not None for reference in alive) <= 3
            yield copy

    keys = draw(range(len(IMAGES)))
    for few, all_ in zip(ENGINE.crop(read(), keys), ENGINE.crop(IMAGES, keys), strict=True):
        assert torch.equal(few.images, all_.images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_views_are_float32_whatever_the_default(dtype):
    torch.set_default_dtype(dtype)
    try:
        (views, *_) = ENGINE(IMAGES, draw(range(len(IMAGES))))
    finally:
        torch.set_default_dtype(torch.float32)
    assert views.images.dtype == torch.float32


@pytest.mark.parametrize("backend", [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul], ids=["cuda", "mkldnn"])
def test_products_of_pixels_are_exact_whatever_is_allowed_elsewhere(backend, monkeypatch):
    seen = []

    def look(x, sigma, widest):
        seen.append(backend.fp32_precision)

    monkeypatch.setattr(finish_module, "blur_", look)
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        Engine(Augmentation((Group((RICH,)),)))(IMAGES, draw(range(len(IMAGES))))
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
    assert set(seen) == {"ieee"}


class Masked(Policy):
    """Some bits of all pixels turned."""

    def __call__(self, image: Tensor, random: np.random.Generator) -> Tensor:
        return image ^ int(random.integers(256))


def test_a_policy_sees_what_was_cropped():
    """Each view draws for itself; what other views are drawn from stays."""
    view = replace(RICH, policy=Masked())
    plain = Engine(augmentation(RICH, RICH, RICH)).crop(IMAGES, draw([0, 1, 2, 3, 4]))[0]
    engine = Engine(augmentation(view, RICH, view))
    found = engine.crop(IMAGES, draw([0, 1, 2, 3, 4]))[0]
    assert np.array_equal(found.looks.order, plain.looks.order)
    turned = (found.images ^ plain.images).flatten(2)
    assert not turned[1].any()
    assert (turned == turned[..., :1]).all()
    assert len(set(turned[[0, 2], :, 0].flatten().tolist())) > 5
    assert torch.equal(engine.crop(IMAGES[3:], draw([3, 4]))[0].images, found.images[:, 3:])
    later = engine.crop(IMAGES, draw([0, 1, 2, 3, 4], epoch=1))[0]
    before = Engine(augmentation(RICH, RICH, RICH)).crop(IMAGES, draw([0, 1, 2, 3, 4], epoch=1))[0]
    assert not torch.equal((later.images ^ before.images).flatten(2), turned)
