"""Views: from decoded images to what a method looks at.

    spec          what views are made of, as data: View, Group, Augmentation
    presets       the views of each published method; `preset(name)`, `small(augmentation)`
    masks         which patches are hidden
    engine        images in, views out; the same pixels whatever the number of workers, on the CPU or on a GPU
    draws         from uniform numbers to boxes and operations
    colour, blur  operations on pixels
    finish        the operations, in order, on many images at once
    randomness    random numbers by key

An image flows through `Engine.crop` (uint8, one by one) and `Engine.finish` (floats, batched).
"""

from prototile.views.engine import Crops, Engine
from prototile.views.finish import denormalized
from prototile.views.masks import Blocks, Draw, FixedBlocks, Masks, RandomDrop, SharedDrop, SpreadBlocks
from prototile.views.presets import PRESETS, preset, small
from prototile.views.spec import CIFAR10, IMAGENET, Augmentation, Blur, Group, Jitter, Normalization, Policy, View

__all__ = [
    "CIFAR10",
    "IMAGENET",
    "PRESETS",
    "Augmentation",
    "Blocks",
    "Blur",
    "Crops",
    "Draw",
    "Engine",
    "FixedBlocks",
    "Group",
    "Jitter",
    "Masks",
    "Normalization",
    "Policy",
    "RandomDrop",
    "SharedDrop",
    "SpreadBlocks",
    "View",
    "denormalized",
    "preset",
    "small",
]
