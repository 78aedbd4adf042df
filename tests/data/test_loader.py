"""Loaders: every image once, the same batches whatever the number of ranks and workers, exact resuming, bad images."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

import loader_cases
from loader_cases import AUGMENTATION, IMAGES, PLAIN, Damaged, epochs, pixels, source, state_after
from prototile.data.bad import BadImages
from prototile.data.loader import Loader, Waiting, default_workers
from prototile.data.samplers import ClassesPerBatch, InOrder, Shuffled
from prototile.data.shards import open_shards
from prototile.schedules import Cosine, Progress
from prototile.views import Augmentation, Draw, Engine, Group, View
from ranks import RankPool

KINDS = ("source", "shards")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index, so that nothing is counted, and kept in a cache."""
    return str(loader_cases.write_shards(tmp_path_factory.mktemp("shards")))


def flat(batches: list) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_with_two_workers_see_every_image_once_an_epoch(kind, shards, two_ranks: RankPool):
    by_rank = two_ranks.run(epochs, kind, shards, 2)
    for epoch in range(2):
        seen = [index for rank in by_rank for index in flat(rank[epoch])]
        assert sorted(seen) == list(range(IMAGES))
    first, second = (flat(by_rank[0][epoch]) for epoch in range(2))
    assert first != second


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_resume_with_what_remains(kind, shards, two_ranks: RankPool):
    whole = two_ranks.run(epochs, kind, shards, 2)
    states = two_ranks.run(state_after, kind, shards, 4)
    assert states[0] == states[1]
    assert (states[0]["epoch"], states[0]["step"]) == (0, 4)
    for uninterrupted, resumed in zip(whole, two_ranks.run(epochs, kind, shards, 2, states[0]), strict=True):
        assert resumed == [uninterrupted[0][4:], uninterrupted[1]]


def test_workers_outlive_the_signals_that_end_a_run():
    """A queue sends them to all processes; the main one wants to finish its step."""
    loader, others = Loader(source(), AUGMENTATION, 4, workers=2, epochs=1), set(multiprocessing.active_children())
    batches = iter(loader)
    for _ in range(2):  # one of each worker: both have begun
        next(batches)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for worker in workers:
        assert os.getpgid(worker.pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
    time.sleep(0.3)
    assert len(list(batches)) == len(loader) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_with_what_remains(kind, shards, tmp_path, start):
    log = tmp_path / "log"
    process = start(loader_cases.write_down, kind, shards, log, 2, "fork")
    while process.running and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.001)
    process.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    last = min(len(lines), 4)
    resumed = loader_cases.loader(kind, shards)
    resumed.load_state_dict(lines[last - 1]["state"])
    whole = [batch.indices.tolist() for batch in loader_cases.loader(kind, shards)]
    assert [line["indices"] for line in lines] == whole[: len(lines)]
    assert [batch.indices.tolist() for batch in resumed] == whole[last:]


def test_workers_do_not_change_pixels():
    one, two, none = (
        [pixels(batch.views) for batch in loader_cases.loader("source", "", workers=workers)] for workers in (1, 2, 0)
    )
    for batches in zip(one, two, none, strict=True):
        for x, y, z in zip(*batches, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(x, z)


def test_ranks_do_not_change_pixels(two_ranks: RankPool):
    """Masks that a batch shares included: row i of the batch is row i // 2 of rank i % 2."""
    ranks = two_ranks.run(loader_cases.contents)
    batches = [pixels(batch.views) for batch in loader_cases.loader("source", "", workers=0)]
    assert len(batches) == IMAGES // 8
    for step, whole in enumerate(batches):
        for i, tensor in enumerate(whole):
            interleaved = torch.stack([ranks[0][step][i], ranks[1][step][i]], 2).flatten(1, 2)
            # colours are computed on several images at once, which moves the last bits
            torch.testing.assert_close(tensor, interleaved, rtol=0, atol=2e-6)


def test_shards_hold_the_same_images_and_give_the_same_views_whatever_the_workers(shards):
    """The order depends on the workers; an image's views in an epoch do not."""
    views = []
    for workers in (0, 2):
        views.append({})
        for batch in loader_cases.loader("shards", shards, workers=workers):
            assert batch.labels.tolist() == batch.indices.tolist()
            for row, index in enumerate(batch.indices.tolist()):
                views[-1][index] = batch.views[0].images[:, row]
    assert views[0].keys() == views[1].keys()
    for index, view in views[0].items():
        torch.testing.assert_close(view, views[1][index], rtol=0, atol=2e-6)


def test_labels_and_indices_go_together():
    for batch in Loader(source(), PLAIN, 8, workers=0):
        assert batch.labels.tolist() == (batch.indices % 5).tolist()


def test_a_last_smaller_batch_may_leave_a_rank_without_images():
    sizes = [len(batch.indices) for batch in Loader(source(), PLAIN, InOrder(IMAGES, 40), workers=0)]
    assert sizes == [40, 8]
    views = Engine(AUGMENTATION)([], Draw(0, 0, np.arange(0), np.arange(0), 1))
    assert [tuple(group.images.shape) for group in views] == [(2, 0, 3, 16, 16), (1, 0, 3, 16, 16)]


def test_a_sampler_decides_the_batches():
    sampler = ClassesPerBatch(source().labels, 8, 2)
    loader = Loader(source(), PLAIN, sampler, workers=0)
    assert len(loader) == len(sampler)
    for batch in loader:
        assert len(set(batch.labels.tolist())) == 2


def test_each_iter_is_the_next_epoch_also_after_breaking_off():
    loader = Loader(source(), PLAIN, 8, workers=0)
    firsts = [next(iter(loader)).indices.tolist() for _ in range(3)]
    other = Loader(source(), PLAIN, 8, workers=0)
    assert firsts == [next(iter(list(other))).indices.tolist() for _ in range(3)]


def test_the_state_at_the_end_of_an_epoch_is_the_start_of_the_next():
    loader = Loader(source(), PLAIN, 8, workers=0)
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (1, 0)
    resumed = Loader(source(), PLAIN, 8, workers=0)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert [b.indices.tolist() for b in resumed] == [b.indices.tolist() for b in loader]


def test_resuming_keeps_the_models_random_numbers():
    """Starting an epoch takes none of them."""
    torch.manual_seed(0)
    next(iter(Loader(source(), PLAIN, 8, workers=0)))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(("setting", "said"), [({"seed": 1}, "seed was 0 and is 1"), ({"batch": 16}, "batch was 8")])
def test_another_run_does_not_resume(setting, said):
    state = Loader(source(), PLAIN, 8, workers=0).state_dict()
    other = Loader(source(), PLAIN, setting.pop("batch", 8), workers=0, **setting)
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(state)


def test_shards_resume_with_the_same_workers_only(shards):
    state = loader_cases.loader("shards", shards, workers=1).state_dict()
    with pytest.raises(ValueError, match="workers was 1 and is 2"):
        loader_cases.loader("shards", shards, workers=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("sampler", "other", "said"),
    [
        (Shuffled(IMAGES, 8), Shuffled(IMAGES, 8, seed=1), "seed was 0 and is 1"),
        (Shuffled(IMAGES, 8), InOrder(IMAGES, 8), "sampler was shuffled and is in order"),
    ],
)
def test_another_sampler_does_not_resume(sampler, other, said):
    state = Loader(source(), PLAIN, sampler, workers=0).state_dict()
    with pytest.raises(ValueError, match=said):
        Loader(source(), PLAIN, other, workers=0).load_state_dict(state)


def test_a_sampler_for_other_data():
    with pytest.raises(ValueError, match="the sampler is for 8 images, and the source has 48"):
        Loader(source(), PLAIN, Shuffled(8, 4), workers=0)


def test_two_epochs_at_a_time_are_refused():
    """They would take each other's batches."""
    loader = Loader(source(), PLAIN, 8, workers=0)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="another epoch of this loader was begun"):
        next(first)


def test_a_loader_older_than_the_process_group(monkeypatch):
    """It would give every rank all images."""
    loader = Loader(source(), PLAIN, 8, workers=0)
    monkeypatch.setattr("prototile.distributed.world_size", lambda: 2)
    monkeypatch.setattr("prototile.distributed.rank", lambda: 0)
    with pytest.raises(RuntimeError, match="make loaders after it"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("digits", PLAIN, 8), "'digits': open it with prototile.data.open_data"),
        ((source(), "dino", 8), "'dino': see prototile.views.preset"),
        ((source(), PLAIN, 8.0), "integer"),
    ],
)
def test_wrong_types(unchecked, arguments, said):
    with pytest.raises(TypeError, match=said):
        Loader(*arguments, workers=0)


def test_numpys_whole_numbers_are_batch_sizes():
    assert len(Loader(source(), PLAIN, np.int64(8), workers=0)) == 6


@pytest.mark.parametrize("labels", [[1] * 48, torch.ones(48), np.ones(48, np.uint8)], ids=["list", "tensor", "uint8"])
def test_labels_are_whole_numbers_in_the_batch(unchecked, labels):
    images = source()
    images.labels = labels
    batch = next(iter(Loader(images, PLAIN, 8, workers=0)))
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [1] * 8


def test_one_label_too_few(unchecked):
    images = source()
    images.labels = images.labels[1:]
    with pytest.raises(ValueError, match="48 images and 47 labels"):
        Loader(images, PLAIN, 8, workers=0)


def test_shards_without_labels(tmp_path):
    """Some have one, the others -1, in every batch."""
    index = loader_cases.write_shards(tmp_path, labelled=lambda number: number % 3 == 0)
    for batch in loader_cases.loader("shards", str(index), workers=0):
        assert batch.labels.tolist() == [i if i % 3 == 0 else -1 for i in batch.indices.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_are_not_forked(kind, shards, tmp_path, start):
    """As on macOS, and on Linux from Python 3.14 on."""
    process = start(loader_cases.write_down, kind, shards, tmp_path / "log", 1, "spawn")
    assert process.wait() == 0, process.stderr
    lines = [json.loads(line)["indices"] for line in (tmp_path / "log").read_text().splitlines()]
    assert lines == [batch.indices.tolist() for batch in loader_cases.loader(kind, shards, workers=1)]


def test_an_augmentation_that_follows_the_run():
    annealed = Augmentation((Group((View(16, (Cosine(0.9, 0.1), 1.0)),)),))
    with pytest.raises(ValueError, match="epochs"):
        Loader(source(), annealed, 8, workers=0)
    crossing = Augmentation((Group((View(16, (Cosine(0.2, 0.9), 0.5)),)),))
    with pytest.raises(ValueError, match="scale"):  # at once, not in the middle of the run
        Loader(source(), crossing, 8, workers=0, epochs=2)
    batch = list(Loader(source(), annealed, 8, workers=0, epochs=2))[4]
    images = [source().image(index) for index in batch.indices.tolist()]
    draw = Draw(0, 4, 32 + np.arange(8), np.arange(8), 8)
    (expected,) = Engine(annealed)(images, draw, Progress(4, 12, 2))
    assert torch.equal(batch.views[0].images, expected.images)


def test_samplers_are_for_sources(shards):
    with pytest.raises(ValueError, match="shards are read in order"):
        Loader(open_shards(shards), PLAIN, InOrder(IMAGES, 8), workers=0)


def test_a_batch_that_ranks_cannot_share(two_ranks: RankPool):
    assert two_ranks.run(loader_cases.odd_batch) == ["use 8 or 10", "use 8 or 10"]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_counted_and_listed(workers, caplog, tmp_path):
    loader = Loader(Damaged(40, (3, 17)), PLAIN, 8, workers=workers)
    seen = []
    for batch in loader:
        assert len(batch.indices) == 8
        seen += batch.indices.tolist()
        pixels_ = (batch.views[0].images[0, :, 0, 0, 0] * 0.229 + 0.485) * 255
        assert pixels_.round().int().tolist() == batch.indices.tolist() == batch.labels.tolist()
    assert set(seen) == set(range(40)) - {3, 17}
    assert loader.bad.reasons == {"3.jpg": "it is torn", "17.jpg": "it is torn"}
    assert "skipped 3.jpg: it is torn" in caplog.text
    loader.bad.write(tmp_path / "bad")
    assert sorted((tmp_path / "bad").read_text().splitlines()) == ["17.jpg\tit is torn", "3.jpg\tit is torn"]
    assert seen == [i for batch in Loader(Damaged(40, (3, 17)), PLAIN, 8, workers=0) for i in batch.indices.tolist()]


@pytest.mark.parametrize("batch", [1, InOrder(41, 40)], ids=["one", "rest of one"])
def test_a_bad_image_alone_in_its_batch(batch):
    batches = list(Loader(Damaged(41, (40,)), PLAIN, batch, workers=0))
    assert sum(len(b.indices) for b in batches) == 41
    assert all(40 not in b.indices for b in batches)


def test_bad_images_are_replaced_by_the_same_on_any_number_of_ranks(two_ranks: RankPool):
    ranks = two_ranks.run(loader_cases.replaced)
    whole = loader_cases.replaced(0, 1)
    assert [[image for pair in zip(*rows, strict=True) for image in pair] for rows in zip(*ranks, strict=True)] == whole


def test_too_many_bad_images_stop_the_run():
    with pytest.raises(ValueError, match=r"5 of 40 images cannot be read.*\n  .*\.jpg: it is torn"):
        list(Loader(Damaged(40, tuple(range(0, 40, 4))), PLAIN, 8, workers=0))
    assert len(list(Loader(Damaged(40, tuple(range(0, 40, 4))), PLAIN, 8, workers=0, bad_share=0.5))) == 5


def test_a_batch_of_bad_images_only():
    with pytest.raises(
        ValueError, match=r"100 images in place of one that .* cannot be read either; .* 1.jpg: it is torn"
    ):
        list(Loader(Damaged(4, (0, 1, 2, 3)), PLAIN, 4, workers=0))


@pytest.mark.parametrize(
    ("images", "limit", "seen", "bad", "stops"),
    [
        (1000, 0.1, 10, 1, False),
        (1000, 0.1, 10, 10, False),  # of the first hundred, not yet more than a tenth
        (1000, 0.1, 100, 11, True),
        (1000, 0.1, 200, 20, False),
        (5, 0.0, 5, 1, False),  # one is never too many
        (5, 0.0, 5, 2, True),
        (5, 1.0, 5, 5, False),
        (9, 0.2, 9, 2, True),
    ],
)
def test_how_many_bad_images_are_too_many(images, limit, seen, bad, stops):
    noted = BadImages(images, limit)
    if stops:
        with pytest.raises(ValueError, match="bad_share"):
            noted.note(seen, [(str(i), "torn") for i in range(bad)])
    else:
        noted.note(seen, [(str(i), "torn") for i in range(bad)])
        noted.note(seen, [(str(i), "torn") for i in range(bad)])  # known ones are not counted again
        assert len(noted) == bad


def test_a_share_of_bad_images_beyond_one(unchecked):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        BadImages(10, 2)


def test_waiting_is_measured_and_shown(caplog):
    caplog.set_level(logging.INFO, "prototile")
    loader = Loader(source(), PLAIN, 8, workers=0)
    for _ in loader:
        time.sleep(0.05)
    assert loader.waiting.total > 6 * 0.05
    assert 0 < loader.waiting.waited < loader.waiting.total
    assert loader.waiting.images == IMAGES
    assert "of the time waiting for data" in caplog.text
    assert str(Waiting(2.0, 0.5, 100)) == "100 images, 50 a second, 25.0% of the time waiting for data"
    assert Waiting().share == 0


def test_workers_leave_a_core_for_training(monkeypatch):
    monkeypatch.setattr("prototile.data.loader._cores", lambda: 32)
    assert default_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers() == 3
    monkeypatch.setattr("prototile.data.loader._cores", lambda: 1)
    assert default_workers() == 1


@pytest.mark.gpu
def test_a_device_finishes_as_workers_do():
    here, there = (Loader(source(), AUGMENTATION, 8, workers=2, device=device) for device in (None, "cuda"))
    for expected, batch in zip(here, there, strict=True):
        assert batch.labels.device.type == "cuda"
        for x, y in zip(pixels(expected.views), pixels(batch.views), strict=True):
            assert y.device.type == "cuda"
            torch.testing.assert_close(y.cpu(), x, rtol=0, atol=1e-5)


def test_a_device_may_be_the_cpu():
    """Workers send uint8 crops; the loader finishes them: to the last bit what workers would have made."""
    for expected, batch in zip(
        Loader(source(), AUGMENTATION, 8, workers=0),
        Loader(source(), AUGMENTATION, 8, workers=2, device="cpu"),
        strict=True,
    ):
        for x, y in zip(pixels(expected.views), pixels(batch.views), strict=True):
            assert torch.equal(x, y)


def test_what_workers_need_can_be_sent_to_them(shards):
    """Where they are not forked."""
    for kind in KINDS:
        data = loader_cases.loader(kind, shards)._feed.arguments()["dataset"]
        pickle.dumps(data)  # a shared tensor can be sent to a process that is being started only
