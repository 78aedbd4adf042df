"""Presets: the views of each published method, at paper scale, and what becomes of them for small images.

    preset       groups of views                                       paper
    simclr       2 x 224                                               https://arxiv.org/abs/2002.05709
    vicreg       2 x 224, blur and solarisation differ                 https://arxiv.org/abs/2105.04906
    barlow_twins as vicreg                                             https://arxiv.org/abs/2103.03230
    simsiam      2 x 224                                               https://arxiv.org/abs/2011.10566
    mmcr         2 x 224 (any number), as vicreg's first               https://arxiv.org/abs/2303.03307
    swav         2 x 224; 6 x 96                                       https://arxiv.org/abs/2006.09882
    dino         2 x 224; 8 x 96 (DINO-vMF and EsViT likewise)         https://arxiv.org/abs/2104.14294
    ibot         2 x 224 with block masks; 10 x 96                     https://arxiv.org/abs/2111.07832
    dinov2       2 x 224 with masks in half of them; 8 x 96            https://arxiv.org/abs/2304.07193
    msn          1 x 224 target; 1 x 224 with dropped patches; 10 x 96 https://arxiv.org/abs/2204.07141
    pmsn         as msn                                                https://arxiv.org/abs/2210.07277
    pmsn_toy     1 x 32 target; 1 x 32 with dropped patches            the same, section 5.1
    excb         2 x 224; 6 x 96, the scales follow the run            ECCV 2024
    mae          1 x 224 with three quarters of the patches dropped    https://arxiv.org/abs/2111.06377
    data2vec     1 x 224 with 120 of 196 patches masked                https://arxiv.org/abs/2202.03555

All take numbers of views and scales of crops where the papers vary them. `preset(name)` finds one by name;
`small(augmentation)` turns any of them into its form for 32-pixel images.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace

from prototile.schedules import Cosine, Schedule
from prototile.views.masks import Blocks, FixedBlocks, Masks, RandomDrop, SharedDrop, SpreadBlocks
from prototile.views.spec import Augmentation, Blur, Group, Jitter, Normalization, View

Scale = tuple[float | Schedule, float | Schedule]

# the colours of DINO, to which each of its views adds blur and solarisation
_DINO = View(224, (0.4, 1.0), jitter=Jitter(0.4, 0.4, 0.2, 0.1), gray=0.2)


def simclr(*, strength: float = 1.0) -> Augmentation:
    jitter = Jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return _augmentation((View(224, (0.08, 1.0), jitter=jitter, gray=0.2, blur=Blur(0.5)),) * 2)


def vicreg() -> Augmentation:
    return _augmentation(_asymmetric((0.08, 1.0)))


barlow_twins = vicreg


def simsiam() -> Augmentation:
    view = View(224, (0.2, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=Blur(0.5), interpolation="bilinear")
    return _augmentation((view,) * 2)


def mmcr(*, views: int = 2) -> Augmentation:
    return _augmentation((replace(_DINO, scale=(0.08, 1.0), blur=Blur(1.0)),) * views)


def swav(*, global_scale: Scale = (0.14, 1.0), local_scale: Scale = (0.05, 0.14), local_views: int = 6) -> Augmentation:
    view = View(
        224, global_scale, jitter=Jitter(0.8, 0.8, 0.8, 0.2), gray=0.2, blur=Blur(0.5), interpolation="bilinear"
    )
    return _augmentation((view,) * 2, (replace(view, size=96, scale=local_scale),) * local_views)


def dino(*, global_scale: Scale = (0.4, 1.0), local_scale: Scale = (0.05, 0.4), local_views: int = 8) -> Augmentation:
    return _multi_crop(global_scale, local_scale, local_views)


def ibot(
    *,
    global_scale: Scale = (0.25, 1.0),
    local_scale: Scale = (0.05, 0.25),
    local_views: int = 10,
    masks: Masks = Blocks(),  # noqa: B008 (immutable)
    patch: int = 16,
) -> Augmentation:
    return _multi_crop(global_scale, local_scale, local_views, masks, patch)


def dinov2(
    *,
    global_scale: Scale = (0.32, 1.0),
    local_scale: Scale = (0.05, 0.32),
    local_views: int = 8,
    masks: Masks = SpreadBlocks(),  # noqa: B008
    patch: int = 16,
) -> Augmentation:
    return _multi_crop(global_scale, local_scale, local_views, masks, patch)


def msn(*, drop: float = 0.15, random_views: int = 1, focal_views: int = 10, patch: int = 16) -> Augmentation:
    view = View(224, (0.3, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=Blur(0.5), interpolation="bilinear")
    focal = replace(view, size=96, scale=(0.05, 0.3))
    return _masked_siamese(view, drop, random_views, (focal,) * focal_views, patch)


pmsn = msn


def pmsn_toy(*, drop: float = 0.05, patch: int = 4) -> Augmentation:
    view = View(32, (0.5, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.1), gray=0.2, interpolation="bilinear")
    return _masked_siamese(view, drop, 1, (), patch)


def excb(*, local_views: int = 6) -> Augmentation:
    """The smallest global crop goes from 0.26 to 0.14 of the area over the run; local crops end where it begins."""
    smallest = Cosine(0.26, 0.14)
    return _multi_crop((smallest, 1.0), (0.05, smallest), local_views)


def mae(*, drop: float = 0.75, patch: int = 16) -> Augmentation:
    return Augmentation((Group((View(224, (0.2, 1.0)),), RandomDrop(drop), patch),))


def data2vec(*, masks: Masks = FixedBlocks(), patch: int = 16) -> Augmentation:  # noqa: B008
    view = View(224, (0.08, 1.0), jitter=Jitter(0.4, 0.4, 0.4, 0.0, probability=1.0))
    return Augmentation((Group((view,), masks, patch),))


PRESETS: dict[str, Callable[[], Augmentation]] = {
    "simclr": simclr,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
    "simsiam": simsiam,
    "mmcr": mmcr,
    "swav": swav,
    "dino": dino,
    "ibot": ibot,
    "dinov2": dinov2,
    "msn": msn,
    "pmsn": pmsn,
    "pmsn_toy": pmsn_toy,
    "excb": excb,
    "mae": mae,
    "data2vec": data2vec,
}


def preset(name: str) -> Augmentation:
    """The preset of this name, as published."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no preset {name!r}: {hint}There are {', '.join(PRESETS)}")
    return PRESETS[name]()


def small(
    augmentation: Augmentation,
    *,
    size: int = 32,
    local_size: int = 16,
    patch: int = 4,
    smallest: float = 0.3,
    normalization: Normalization | None = None,
) -> Augmentation:
    """The augmentation for images of about `size` pixels: no blur, no solarisation, crops that are not too small.

    The largest views become `size` and cover at least `smallest` of the area; the others become `local_size`, and cover
    from at least a third of that up to at least that.
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"the smallest share of the area that a crop covers lies in (0, 1], got {smallest}")
    largest = max(group.size for group in augmentation.groups)

    def shrunk(view: View) -> View:
        low, high = view.scale
        is_global = view.size == largest
        floor, least = (smallest, 1.0) if is_global else (round(smallest / 3, 6), smallest)
        return replace(
            view,
            size=size if is_global else local_size,
            scale=(_at_least(low, floor), _at_least(high, least)),
            blur=None,
            solarize=0.0,
        )

    groups = tuple(
        replace(group, views=tuple(shrunk(view) for view in group.views), patch=patch) for group in augmentation.groups
    )
    return replace(augmentation, groups=groups, normalization=normalization or augmentation.normalization)


def _at_least(bound: float | Schedule, floor: float) -> float:
    return floor if isinstance(bound, Schedule) else max(bound, floor)


def _asymmetric(scale: Scale) -> tuple[View, View]:
    """BYOL's pair: the first view is always blurred, the second rarely, but sometimes solarised."""
    first = replace(_DINO, scale=scale, blur=Blur(1.0))
    return first, replace(first, blur=Blur(0.1), solarize=0.2)


def _multi_crop(
    global_scale: Scale, local_scale: Scale, local_views: int, masks: Masks | None = None, patch: int = 16
) -> Augmentation:
    # small crops of 96 pixels, or of the nearest size that patches tile (98 for patches of 14)
    local = replace(_DINO, size=96 if 96 % patch == 0 else 7 * patch, scale=local_scale, blur=Blur(0.5))
    return _augmentation(_asymmetric(global_scale), (local,) * local_views, masks=masks, patch=patch)


def _masked_siamese(view: View, drop: float, random_views: int, focal: tuple[View, ...], patch: int) -> Augmentation:
    """The target alone in the first group, then anchors with dropped patches, then small anchors with all of theirs."""
    groups = [Group((view,), patch=patch), Group((view,) * random_views, SharedDrop(drop), patch)]
    if focal:
        groups.append(Group(focal, patch=patch))
    return Augmentation(tuple(groups))


def _augmentation(*groups: tuple[View, ...], masks: Masks | None = None, patch: int = 16) -> Augmentation:
    """Groups of views, of which the first is masked; groups without views are left out."""
    first, *others = groups
    return Augmentation((Group(first, masks, patch), *(Group(views, patch=patch) for views in others if views)))
