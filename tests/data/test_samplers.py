"""Samplers: what a batch holds, how often, and with what; and that the checks that say so can fail.

The statistical tests have fixed seeds. A p-value must be above 0.01, a z-score below 3, the largest z-score of all
images below 6 (chance with 5,000 images that are expected 29 times each: 0.1%).
"""

import json
import pickle

import numpy as np
import pytest
from scipy import stats

from prototile.data.samplers import ClassesPerBatch, ClassPower, InOrder, Repeated, Sampler, Shuffled

CLASSES, SIZE, BATCH, DRAWS = 100, 50, 96, 1500
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), SIZE))
BY_CLASS = np.argsort(LABELS, kind="stable").reshape(CLASSES, SIZE)
UNEQUAL = np.random.default_rng(1).permutation(np.repeat(np.arange(20), np.arange(48, 88, 2)))


# --- class-balanced and class-imbalanced batches


def presence(sampler: Sampler, images: int, draws: int = DRAWS) -> np.ndarray:
    """draws x images: whether the batch holds the image."""
    held = np.zeros((draws, images), bool)
    for step in range(draws):
        held[step, sampler.batch(*divmod(step, len(sampler)))] = True
    return held


def worst_inclusion(held: np.ndarray, expected: np.ndarray) -> float:
    """The largest z-score of an image's share of batches."""
    return float(np.abs((held.mean(axis=0) - expected) / np.sqrt(expected * (1 - expected) / len(held))).max())


def chi_square(observed: np.ndarray, draws: int, wanted: int) -> tuple[float, int]:
    """Statistic and degrees of freedom of `draws` draws of `wanted` things without replacement out of all of them.

    The counts of m things drawn so have variance T p (1 - p), p = wanted / m, and covariance -T p (1 - p) / (m - 1).
    """
    things = len(observed)
    share = wanted / things
    variance = draws * share * (1 - share) * things / (things - 1)
    return float(((observed - draws * share) ** 2).sum() / variance), things - 1


def class_p_value(held: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Of the number of batches in which each class occurs."""
    occurs = np.array([held[:, labels == k].any(axis=1).sum() for k in np.unique(labels)])
    return float(stats.chi2.sf(*chi_square(occurs, len(held), classes)))


def image_p_value(held: np.ndarray, labels: np.ndarray, each: int) -> float:
    """Of the number of batches that hold each image, given how many hold its class: the sum over the classes."""
    parts = []
    for k in np.unique(labels):
        of_class = held[:, labels == k]
        parts.append(chi_square(of_class.sum(axis=0), int(of_class.any(axis=1).sum()), each))
    return float(stats.chi2.sf(*np.sum(parts, axis=0)))


def pair_score(held: np.ndarray, expected: float, same_class: bool) -> float:
    """The z-score of how often batches hold both images of a pair, over pairs that share no image."""
    pairs = (
        BY_CLASS.reshape(-1, 2) if same_class else BY_CLASS.reshape(CLASSES // 2, 2, SIZE).swapaxes(1, 2).reshape(-1, 2)
    )
    shares = held[:, pairs].all(axis=2).mean(axis=1)
    if expected == 0:
        return float("inf") if shares.any() else 0.0
    return float(abs(shares.mean() - expected) / (shares.std() / np.sqrt(len(held))))


def pair_scores(held: np.ndarray, classes: int) -> tuple[float, float]:
    """For pairs of one class, P = c/C m(m-1) / (N(N-1)); of two classes, P = c(c-1) / (C(C-1)) (m/N)^2."""
    each = BATCH // classes
    same = classes / CLASSES * each * (each - 1) / (SIZE * (SIZE - 1))
    different = classes * (classes - 1) / (CLASSES * (CLASSES - 1)) * (each / SIZE) ** 2
    return pair_score(held, same, True), pair_score(held, different, False)


@pytest.mark.parametrize("classes", [2, 8, 96])
def test_few_classes_keep_the_marginals(classes):
    """Appendix G: an image's chance is B / (C N) whatever the number of classes; co-occurrence depends on it."""
    sampler = ClassesPerBatch(LABELS, BATCH, classes)
    held = presence(sampler, len(LABELS))
    np.testing.assert_array_equal(held.sum(axis=1), BATCH)
    np.testing.assert_allclose(sampler.inclusion(), BATCH / (CLASSES * SIZE))
    assert worst_inclusion(held, sampler.inclusion()) < 6
    assert class_p_value(held, LABELS, classes) > 0.01
    assert image_p_value(held, LABELS, BATCH // classes) > 0.01
    assert max(pair_scores(held, classes)) < 3


@pytest.mark.parametrize("classes", [2, 8, 16])
def test_on_unequal_classes_the_classes_are_equally_likely(classes):
    sampler = ClassesPerBatch(UNEQUAL, 80, classes, seed=1)
    held = presence(sampler, len(UNEQUAL), 1000)
    expected = 80 / (20 * np.bincount(UNEQUAL)[UNEQUAL])
    np.testing.assert_allclose(sampler.inclusion(), expected)
    assert worst_inclusion(held, expected) < 6
    assert class_p_value(held, UNEQUAL, classes) > 0.01
    assert image_p_value(held, UNEQUAL, 80 // classes) > 0.01


class Wrong(Sampler):
    """Draws by a function of a generator."""

    def __init__(self, draw):
        self.batch_size, self.num_images, self.draw = BATCH, len(LABELS), draw

    def identity(self):
        return {}

    def __len__(self):
        return DRAWS

    def batch(self, epoch, step):
        return self.draw(np.random.default_rng(step))


RISING = np.linspace(0.7, 1.3, CLASSES) / CLASSES
FALLING = np.linspace(1.3, 0.7, SIZE) / SIZE


def images_of_all_classes(random):
    return random.choice(len(LABELS), BATCH, replace=False)


def classes_with_replacement(random):
    return np.concatenate([random.choice(BY_CLASS[k], 2, replace=False) for k in random.choice(CLASSES, 48)])


def large_classes_first(random):
    chosen = random.choice(CLASSES, 8, replace=False, p=RISING)
    return np.concatenate([random.choice(BY_CLASS[k], 12, replace=False) for k in chosen])


def early_images_first(random):
    chosen = random.choice(CLASSES, 8, replace=False)
    return np.concatenate([random.choice(BY_CLASS[k], 12, replace=False, p=FALLING) for k in chosen])


def test_the_checks_can_fail():
    """Each check refuses a sampler that is wrong where it looks."""
    expected = np.full(len(LABELS), BATCH / len(LABELS))
    held = {
        draw.__name__: presence(Wrong(draw), len(LABELS))
        for draw in (images_of_all_classes, classes_with_replacement, large_classes_first, early_images_first)
    }
    assert worst_inclusion(held["images_of_all_classes"], expected) < 6  # the marginals alone do not see it
    assert min(pair_scores(held["images_of_all_classes"], 8)) > 3
    assert class_p_value(held["images_of_all_classes"], LABELS, 8) < 1e-6
    assert class_p_value(held["classes_with_replacement"], LABELS, 48) < 1e-6
    assert pair_scores(held["classes_with_replacement"], 48)[0] > 3
    assert class_p_value(held["large_classes_first"], LABELS, 8) < 1e-6
    assert image_p_value(held["early_images_first"], LABELS, 12) < 1e-6
    assert class_p_value(held["early_images_first"], LABELS, 8) > 0.01


def test_shuffling_unequal_classes_is_not_the_balanced_sampler():
    held = presence(Shuffled(len(UNEQUAL), BATCH), len(UNEQUAL), 4000)
    assert worst_inclusion(held, BATCH / (20 * np.bincount(UNEQUAL)[UNEQUAL])) > 6


def test_a_batch_has_as_many_images_of_each_class():
    batch = ClassesPerBatch(UNEQUAL, 80, 8).batch(3, 5)
    assert sorted(np.bincount(UNEQUAL[batch]))[-8:] == [10] * 8
    whole = ClassesPerBatch(np.repeat([0, 1], 40), 80, 2)  # all of each
    np.testing.assert_array_equal(np.sort(whole.batch(0, 0)), np.arange(80))
    assert abs(np.mean([whole.batch(0, step)[:40].mean() for step in range(200)]) - 39.5) < 1  # in random order


def test_classes_are_those_that_occur():
    batch = ClassesPerBatch(np.array([7, 3, 3, 7, 7]), 4, 2).batch(0, 0)
    assert sorted(np.array([7, 3, 3, 7, 7])[batch]) == [3, 3, 7, 7]


@pytest.mark.parametrize(
    ("batch_size", "classes", "message"),
    [
        (96, 21, "cannot have 21 classes: the labels have 20"),
        (100, 8, "cannot be shared equally by 8 classes: use a batch_size of 96 or 104"),
        (5, 8, "use a batch_size of 8$"),
        (256, 2, "128 images of each of 2 classes are too many: class 0 has 48; the fewest that fit are 8"),
        (2048, 16, "use a batch_size of at most 768"),
        (0, 2, "batch_size must be at least 1, got 0"),
        (8, 0, "classes must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit(batch_size, classes, message):
    with pytest.raises(ValueError, match=message):
        ClassesPerBatch(UNEQUAL, batch_size, classes)


def test_the_advice_fits():
    assert len(ClassesPerBatch(UNEQUAL, 256, 8).batch(0, 0)) == 256
    assert len(ClassesPerBatch(UNEQUAL, 768, 16).batch(0, 0)) == 768


# --- classes by a power of their size

SIZES = np.array([400, 200, 90, 40, 16, 4])
TAIL = np.random.default_rng(2).permutation(np.repeat(np.arange(6), SIZES))


def class_draws(sampler: Sampler, draws: int) -> np.ndarray:
    return np.bincount(TAIL[np.concatenate([sampler.batch(0, step) for step in range(draws)])], minlength=6)


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
def test_class_power(exponent):
    sampler = ClassPower(TAIL, 32, exponent)
    probabilities = SIZES**exponent / (SIZES**exponent).sum()
    np.testing.assert_allclose(sampler.probabilities, probabilities)
    drawn = class_draws(sampler, 1000)
    assert stats.chisquare(drawn, 1000 * 32 * probabilities).pvalue > 0.01
    other = SIZES**0.75 / (SIZES**0.75).sum()
    assert stats.chisquare(drawn, 1000 * 32 * other).pvalue < 1e-6  # the check can fail


def test_images_of_a_class_are_equally_likely():
    sampler = ClassPower(UNEQUAL, 32, 0.5)  # never exhausts a class
    held = presence(sampler, len(UNEQUAL), 1000)
    np.testing.assert_array_equal(held.sum(axis=1), 32)
    assert worst_inclusion(held, 32 * sampler.probabilities[UNEQUAL] / np.bincount(UNEQUAL)[UNEQUAL]) < 6


def test_images_repeat_only_where_a_class_is_exhausted():
    sampler = ClassPower(TAIL, 64, 0)
    for step in range(50):
        counts = np.bincount(sampler.batch(0, step), minlength=len(TAIL))
        for k in range(6):
            of_class = counts[k == TAIL]
            assert of_class.max() - of_class.min() <= 1
            assert of_class.max() == -(-of_class.sum() // SIZES[k])


@pytest.mark.parametrize(
    ("exponent", "batch_size", "steps"), [(0, 64, 10), (0.5, 64, 10), (1, 8, 30), (0.5, 512, 2), (0, 1, 60)]
)
def test_expected_distinct(exponent, batch_size, steps):
    sampler = ClassPower(TAIL, batch_size, exponent, steps=steps)
    seen = [len(np.unique(np.concatenate([sampler.batch(e, s) for s in range(steps)]))) for e in range(64)]
    assert abs(np.mean(seen) - sampler.expected_distinct()) < 3 * np.std(seen) / 8


def test_expected_distinct_of_known_cases():
    assert ClassPower(np.zeros(100, int), 30, steps=1).expected_distinct() == pytest.approx(30)
    assert ClassPower(np.zeros(100, int), 300, steps=1).expected_distinct() == pytest.approx(100)
    one_by_one = ClassPower(np.repeat(np.arange(10), 7), 1, 1, steps=70)  # 70 draws with replacement out of 70
    assert one_by_one.expected_distinct() == pytest.approx(70 * (1 - (1 - 1 / 70) ** 70))
    assert ClassPower(TAIL, 64, 0).expected_distinct() < ClassPower(TAIL, 64, 0.5).expected_distinct()


def test_bad_class_power():
    for exponent in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="exponent of class sizes"):
            ClassPower(TAIL, 32, exponent)


# --- all images


def test_shuffled_takes_every_image_once():
    sampler = Shuffled(1003, 100, drop_last=False)
    batches = [sampler.batch(4, step) for step in range(len(sampler))]
    assert [len(x) for x in batches] == [100] * 10 + [3]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1003))


def test_shuffled_drops_an_incomplete_batch():
    sampler = Shuffled(1003, 100)
    drawn = np.concatenate([sampler.batch(0, step) for step in range(len(sampler))])
    assert len(sampler) == 10
    assert len(np.unique(drawn)) == 1000
    with pytest.raises(ValueError, match="use a batch_size of at most 50, or drop_last=False"):
        Shuffled(50, 100)


def test_shuffled_is_uniform():
    """Where image 0 ends up, over 3,000 epochs."""
    sampler = Shuffled(10, 1)
    places = np.bincount(
        [next(s for s in range(10) if sampler.batch(epoch, s)[0] == 0) for epoch in range(3000)], minlength=10
    )
    assert stats.chisquare(places).pvalue > 0.01


def test_in_order():
    sampler = InOrder(10, 4)
    assert [sampler.batch(1, step).tolist() for step in range(len(sampler))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# --- all samplers

SAMPLERS = [
    Shuffled(len(TAIL), 32, seed=5),
    InOrder(len(TAIL), 32),
    ClassesPerBatch(TAIL, 8, 2, seed=5),
    ClassPower(TAIL, 32, seed=5),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda x: type(x).__name__)
def test_batches_depend_on_epoch_and_step_only(sampler):
    keys = [(epoch, step) for epoch in range(3) for step in range(4)]
    batches = {key: sampler.batch(*key) for key in keys}
    copy = pickle.loads(pickle.dumps(sampler))
    for key in reversed(keys):
        np.testing.assert_array_equal(copy.batch(*key), batches[key])
    batches[0, 0][:] = 0  # what a caller does to a batch stays there
    assert sampler.batch(0, 0).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: Shuffled(len(TAIL), 32, seed=seed),
        lambda seed: ClassesPerBatch(TAIL, 8, 2, seed=seed),
        lambda seed: ClassPower(TAIL, 32, seed=seed),
    ],
)
def test_seeds_epochs_and_steps_differ(make):
    batches = [make(5).batch(0, 0), make(6).batch(0, 0), make(-1).batch(0, 0), make(5).batch(1, 0), make(5).batch(0, 1)]
    for i, one in enumerate(batches):
        assert not any(np.array_equal(one, other) for other in batches[:i])


def test_steps_of_an_epoch():
    for make in (lambda *a, **k: ClassesPerBatch(TAIL, *a, 2, **k), lambda *a, **k: ClassPower(TAIL, *a, **k)):
        assert len(make(4)) == len(TAIL) // 4
        assert len(make(4, steps=3)) == 3
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            make(4, steps=0)
    assert len(ClassPower(TAIL, 10_000)) == 1


def test_a_batch_that_is_not_there():
    for sampler in (Shuffled(10, 3), InOrder(10, 3)):
        for step in (-1, len(sampler)):
            with pytest.raises(AssertionError):
                sampler.batch(0, step)


def test_labels_that_are_no_classes(unchecked):
    for labels, message in [
        (None, "there are no labels"),
        (np.zeros((5, 3), int), r"shape \(5, 3\) give each image several"),
        (np.array([0, 1, -1]), "image 2 has label -1"),
        (np.array([], int), "there are no images"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClassPower(labels, 2)


def test_identities_tell_what_batches_depend_on():
    samplers = [
        Shuffled(60, 6),
        Shuffled(60, 6, seed=1),
        Shuffled(60, 5),
        Shuffled(61, 6),
        InOrder(60, 6),
        ClassesPerBatch(np.arange(60) % 5, 6, 2),
        ClassesPerBatch(np.arange(60) % 5, 6, 3),
        ClassesPerBatch(np.arange(60) % 6, 6, 2),
        ClassPower(np.arange(60) % 5, 6),
        ClassPower(np.arange(60) % 5, 6, 1.0),
        ClassPower(np.arange(60) % 5, 6, seed=1),
        Repeated(60, 6),
        Repeated(60, 6, 2),
    ]
    identities = [json.dumps(sampler.identity()) for sampler in samplers]
    assert len(set(identities)) == len(samplers)
    assert identities[0] == json.dumps(Shuffled(60, 6).identity())
    assert [sampler.num_images for sampler in samplers] == [61 if i == 3 else 60 for i in range(len(samplers))]


def test_repeated_images_come_in_turn():
    """Three times each, so that an epoch has a third of the images; three ranks have one each."""
    sampler = Repeated(31, 6)
    assert len(sampler) == 5
    epoch = np.concatenate([sampler.batch(1, step) for step in range(5)])
    assert epoch[::3].tolist() == epoch[1::3].tolist() == epoch[2::3].tolist()
    assert len(set(epoch.tolist())) == 10
    order = Shuffled(31, 31).batch(1, 0)
    assert epoch[::3].tolist() == order[:10].tolist()
    assert Repeated(31, 6).batch(1, 3).tolist() == sampler.batch(1, 3).tolist()  # whatever was asked before
    assert Repeated(31, 6).batch(2, 3).tolist() != sampler.batch(1, 3).tolist()
    with pytest.raises(ValueError, match="5 images are less than one batch of 6"):
        Repeated(5, 6)
