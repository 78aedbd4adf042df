"""Data: images from anywhere, in batches of views.

    opening     `open_data("cifar10:ROOT")`: any data from one line of text
    source      what a source is: images by number, with ids and perhaps labels
    files       folders, class folders, lists
    catalog     data sets by name
    toys        handwriting; digits on objects: two factors that are known
    shards      tar files that are read in order
    images      image files of any mode into RGB
    longtail    seeded long-tailed subsets; head, middle and tail
    subsets     a share of each class, a part to validate on, the images of a list
    samplers    which images a batch holds
    loader      batches of views, resumable to the exact next image
    feeds, bad  what the loader's workers do; images that cannot be read

A sampler names images, a source (or a worker's part of the shards) gives them, the engine of `prototile.views` makes
views of them, and the loader hands them out as batches.
"""

from prototile.data.bad import BadImages
from prototile.data.catalog import CATALOG, torchvision_source
from prototile.data.files import Files, class_folders, folder, listed
from prototile.data.loader import Loader, Waiting, default_workers
from prototile.data.longtail import (
    ClassCounts,
    Exponential,
    Groups,
    Power,
    Profile,
    Step,
    group_means,
    long_tailed,
)
from prototile.data.opening import open_data, open_source
from prototile.data.samplers import ClassesPerBatch, ClassPower, InOrder, Repeated, Sampler, Shuffled
from prototile.data.shards import Shards, open_shards
from prototile.data.source import Arrays, BadImage, Source, Subset
from prototile.data.subsets import held_out, named, stratified
from prototile.data.toys import Toy, digits, handwriting, mnist_on_cifar

__all__ = [
    "CATALOG",
    "Arrays",
    "BadImage",
    "BadImages",
    "ClassCounts",
    "ClassPower",
    "ClassesPerBatch",
    "Exponential",
    "Files",
    "Groups",
    "InOrder",
    "Loader",
    "Power",
    "Profile",
    "Repeated",
    "Sampler",
    "Shards",
    "Shuffled",
    "Source",
    "Step",
    "Subset",
    "Toy",
    "Waiting",
    "class_folders",
    "default_workers",
    "digits",
    "folder",
    "group_means",
    "handwriting",
    "held_out",
    "listed",
    "long_tailed",
    "mnist_on_cifar",
    "named",
    "open_data",
    "open_shards",
    "open_source",
    "stratified",
    "torchvision_source",
]
