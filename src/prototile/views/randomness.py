"""Random numbers by key: the same key gives the same numbers, whoever asks, in whatever order.

Stream       what the numbers are for: no two streams share any
generator    the generator of one key: seed, stream, epoch, number
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are drawn for; the values are part of what a seed means, so they stay."""

    SAMPLER = 0
    VIEWS = 1
    MASKS = 2
    BATCH_MASKS = 3
    SUBSTITUTES = 4
    SHARDS = 5
    TAIL = 6
    TOY = 7
    POLICY = 8
    SUBSET = 9


def generator(seed: int, stream: int, epoch: int, number: int) -> np.random.Generator:
    """The generator of this key, `number` being a step or an image; seeds count modulo 2^64.

    Philox-4x64 with key (seed, stream) and the counter's upper half (number, epoch): keys share no numbers before
    2^128 blocks are drawn (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405).
    """
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, number, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
