"""Shards: every image once an epoch, whatever the ranks and workers; resuming; opening; what is refused."""

import gc
import importlib
import io
import itertools
import json
import os
import pickle
import sys
import tarfile
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prototile.data.shards import Part, Span, _read_span, open_shards, read, spans, steps_per_epoch

UNEVEN = (1, 7, 50, 2, 31, 9)  # 100 images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prototile" / "shards"


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The URLs that were opened so far."""
    module = importlib.import_module("webdataset.gopen")
    urls, gopen = [], module.gopen
    monkeypatch.setattr(module, "gopen", lambda url: urls.append(url) or gopen(url))
    return urls


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def write_shards(folder: Path, sizes=UNEVEN, ending=".tar") -> list[Path]:
    """Shards 00, 01, ... whose images hold their own place in the whole."""
    folder.mkdir(exist_ok=True)
    number = itertools.count()
    paths = []
    for shard, size in enumerate(sizes):
        files = []
        for place in range(size):
            image = next(number)
            files += [(f"{place:03d}.jpg", b"%d" % image), (f"{place:03d}.cls", b"%d" % (image % 10))]
        paths.append(write_tar(folder / f"{shard:02d}{ending}", files))
    return paths


def epoch_of_rank(shards, part, start_step=0):
    """The steps and images of one rank, taking a batch from each of its workers in turn, as a loader does."""
    workers = [read(shards, replace(part, worker=worker), start_step) for worker in range(part.workers)]
    steps, batches = [], []
    while workers:
        for worker in list(workers):
            made = next(worker, None)
            if made is None:
                workers.remove(worker)
            else:
                steps.append(made[0])
                batches.append([sample.index for sample in made[1]])
    return steps, batches


@pytest.mark.parametrize("workers", [1, 2, 5, 12])  # more workers than shards, and than batches
@pytest.mark.parametrize(("world", "batch_size"), [(1, 100), (1, 7), (2, 5), (3, 4), (10, 1)])
def test_an_epoch_has_every_image_once(tmp_path, world, batch_size, workers):
    write_shards(tmp_path / "shards")
    shards = open_shards(str(tmp_path / "shards"))
    steps = steps_per_epoch(100, batch_size, world)
    assert steps == 100 // (world * batch_size)
    seen = []
    for rank in range(world):
        part = Part(seed=3, epoch=1, batch_size=batch_size, rank=rank, world=world, workers=workers, buffer=8)
        numbers, batches = epoch_of_rank(shards, part)
        assert numbers == list(range(steps))
        assert all(len(batch) == batch_size for batch in batches)
        seen += itertools.chain.from_iterable(batches)
    assert len(seen) == len(set(seen)) == steps * world * batch_size
    assert set(seen) <= set(range(100))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("buffer", [1, 6, 1000])
def test_resuming_gives_the_rest(tmp_path, workers, buffer):
    write_shards(tmp_path / "shards")
    shards = open_shards(str(tmp_path / "shards"))
    part = Part(seed=0, epoch=2, batch_size=4, rank=1, world=2, workers=workers, buffer=buffer)
    steps, batches = epoch_of_rank(shards, part)
    for start in range(len(steps) + 1):
        assert epoch_of_rank(shards, part, start) == (steps[start:], batches[start:])
    with pytest.raises(ValueError, match="has 12 steps, so it cannot be resumed at step 13"):
        next(read(shards, part, 13))


def test_resuming_opens_no_shard_that_is_done(tmp_path, opened):
    write_shards(tmp_path / "shards", sizes=[10] * 20)
    shards = open_shards(str(tmp_path / "shards"))
    part = Part(seed=0, epoch=0, batch_size=5, buffer=10)
    opened.clear()
    epoch_of_rank(shards, part)
    order = list(opened)
    assert len(order) in (20, 21)  # the shard that the line begins within is read at both ends
    for start in (1, 20, 39):
        opened.clear()
        epoch_of_rank(shards, part, start)
        line = spans(shards.sizes, 0, 0, start * 5 // 10 * 10, 200)
        assert opened == order[-len(line) :]
        assert len(opened) <= 21 - start * 5 // 10
    opened.clear()
    epoch_of_rank(shards, part, 40)
    assert opened == []


def test_ranks_open_their_own_shards_only(tmp_path, opened):
    write_shards(tmp_path / "shards", sizes=[10] * 20)
    shards = open_shards(str(tmp_path / "shards"))
    opened.clear()
    for rank in range(4):
        epoch_of_rank(shards, Part(seed=0, epoch=0, batch_size=5, rank=rank, world=4))
    assert len(opened) <= 20 + 4  # each cut opens a shard twice


def test_epochs_and_seeds_differ_and_repeat(tmp_path):
    write_shards(tmp_path / "shards")
    shards = open_shards(str(tmp_path / "shards"))
    orders = [
        epoch_of_rank(shards, Part(seed=seed, epoch=epoch, batch_size=30)) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    ]
    for a, b in itertools.combinations(orders, 2):
        assert a != b
    assert orders[1] == epoch_of_rank(shards, Part(seed=0, epoch=1, batch_size=30))


@pytest.mark.parametrize("sizes", [(25,), (3, 9, 13)])
def test_dropped_images_vary(sizes):
    """A batch of 20 of 25 drops 5 neighbours a time: an image is spared 60 times with chance 0.8^60 < 2e-6."""
    kept = np.zeros(25, int)
    offsets = np.cumsum(sizes) - sizes
    for epoch in range(60):
        for span in spans(np.array(sizes), 0, epoch, 0, 20):
            kept[offsets[span.shard] + span.begin : offsets[span.shard] + span.end] += 1
    assert kept.sum() == 60 * 20
    assert kept.max() < 60


def test_shuffling_mixes(tmp_path):
    """Within a block any order is as likely as another.

    The mean place of image i over 200 epochs has standard deviation sqrt((24^2 - 1) / 12 / 200) = 0.49: none of 24
    strays by 5 of them (chance below 2e-5). Correlation of neighbours' places, over 200 x 23 pairs, is -1/23 +- 0.015.
    """
    write_shards(tmp_path / "shards", sizes=[24])
    shards = open_shards(str(tmp_path / "shards" / "00.tar"))
    places = np.empty((200, 24))
    for epoch in range(200):
        _, [batch] = epoch_of_rank(shards, Part(seed=0, epoch=epoch, batch_size=24))
        places[epoch, batch] = np.arange(24)
    assert np.abs(places.mean(0) - 11.5).max() < 5 * 0.49
    assert abs(np.corrcoef(places[:, :-1].ravel(), places[:, 1:].ravel())[0, 1] + 1 / 23) < 5 * 0.015


def test_blocks_have_orders_of_their_own(tmp_path):
    """Four blocks of 25 (one a worker, then two of one worker): equal orders have chance 1/25!."""
    write_shards(tmp_path / "shards", sizes=[100])
    shards = open_shards(str(tmp_path / "shards"))
    for workers in (1, 4):
        _, batches = epoch_of_rank(shards, Part(seed=0, epoch=0, batch_size=25, workers=workers, buffer=25))
        orders = {tuple(np.argsort(np.argsort(batch))) for batch in batches}
        assert len(orders) == 4


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
def test_samples(tmp_path, ending):
    write_shards(tmp_path / "shards", ending=ending)
    shards = open_shards(str(tmp_path / "shards"))
    assert tuple(shards.sizes) == UNEVEN
    assert shards.num_images == 100
    seen = [sample for _, batch in read(shards, Part(seed=0, epoch=0, batch_size=10)) for sample in batch]
    assert {sample.index: sample.data for sample in seen} == {i: b"%d" % i for i in range(100)}
    assert {sample.label for sample in seen} == set(range(10))
    assert all(sample.label == sample.index % 10 for sample in seen)
    ids = {sample.index: sample.id for sample in seen}
    assert (ids[0], ids[1], ids[8], ids[99]) == ("00/000", "01/000", "02/000", "05/008")


def test_which_file_is_the_image(tmp_path):
    files = [
        ("__index__/list.jpg", b"no"),
        ("._a.jpg", b"no"),
        ("LICENSE", b"no"),
        ("x/a.mask.png", b"no"),
        ("x/a.JPEG", b"A"),
        ("x/a.json", b"{}"),
        ("x/b.left.webp", b"B"),
        ("x/b.cls", b" 12\n"),
    ]
    write_tar(tmp_path / "train.tar", files)
    shards = open_shards(str(tmp_path / "train.tar"))
    [(_, batch)] = read(shards, Part(seed=0, epoch=0, batch_size=2))
    a, b = sorted(batch, key=lambda sample: sample.index)
    assert (a.id, a.data, a.label) == ("train/x/a", b"A", None)
    assert (b.id, b.data, b.label) == ("train/x/b", b"B", 12)


def test_shards_pickle(tmp_path):
    write_shards(tmp_path / "shards")
    shards = pickle.loads(pickle.dumps(open_shards(str(tmp_path / "shards"))))
    part = pickle.loads(pickle.dumps(Part(seed=0, epoch=0, batch_size=10)))
    assert len(list(read(shards, part))) == 10


def test_ways_to_name_shards(tmp_path, monkeypatch):
    paths = [str(path) for path in write_shards(tmp_path / "shards")]
    (tmp_path / "shards" / ".hidden.tar").write_bytes(b"no")
    (tmp_path / "shards" / "notes.txt").write_bytes(b"no")
    folder = tmp_path / "shards"
    entries = [{"url": "00.tar", "nsamples": 1}, {"url": paths[1], "nsamples": 7, "md5sum": "?"}, {"url": "02.tar"}]
    (folder / "list.json").write_text(json.dumps({"wids_version": 1, "shardlist": entries}))
    (folder / "odd{1,2}.tar").write_bytes((folder / "01.tar").read_bytes())
    assert open_shards(f"{folder}/{{00..05}}.tar").urls == tuple(paths)
    assert open_shards(f"{folder}/00.tar").urls == (paths[0],)
    assert open_shards(f"{folder}/odd{{1,2}}.tar").urls == (f"{folder}/odd{{1,2}}.tar",)
    assert open_shards(f"{folder}/list.json").urls == tuple(paths[:3])
    assert tuple(open_shards(f"{folder}/list.json").sizes) == (1, 7, 50)
    assert open_shards(f"pipe:cat {folder}/0{{0,1}}.tar").urls == tuple(f"pipe:cat {path}" for path in paths[:2])
    assert open_shards(str(folder)).urls == (*paths, f"{folder}/odd{{1,2}}.tar")
    monkeypatch.chdir(tmp_path)
    assert open_shards("shards/{01..02}.tar").urls == tuple(paths[1:3])
    assert open_shards("shards/list.json").urls == tuple(paths[:3])


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_pipes_give_what_files_give(tmp_path, ending):
    write_shards(tmp_path / "shards", ending=ending)
    files = open_shards(f"{tmp_path}/shards/{{00..05}}{ending}")
    pipes = open_shards(f"pipe:cat {tmp_path}/shards/{{00..05}}{ending}")
    assert tuple(pipes.sizes) == UNEVEN
    for rank in range(2):
        part = Part(seed=0, epoch=0, batch_size=5, rank=rank, world=2)
        assert list(read(pipes, part)) == list(read(files, part))


def test_ids_of_shards_with_the_same_name_differ(tmp_path):
    for folder in ("a", "b"):
        write_shards(tmp_path / folder, sizes=[1])
    shards = open_shards(f"{tmp_path}/{{a,b}}/00.tar")
    [(_, batch)] = read(shards, Part(seed=0, epoch=0, batch_size=2))
    assert {sample.id for sample in batch} == {f"{tmp_path}/{folder}/00.tar/000" for folder in "ab"}


def test_a_pipe_is_left_where_a_rank_has_all_it_needs(tmp_path):
    """What remains does not fit into a pipe's buffer, so the command ends with a signal; only one comes to its end."""
    write_tar(tmp_path / "large.tar", [(f"{i}.png", bytes(2**17)) for i in range(20)])
    url = f"pipe:cat {tmp_path}/large.tar && echo >> {tmp_path}/ended"
    (tmp_path / "list.json").write_text(json.dumps({"shardlist": [{"url": url, "nsamples": 20}]}))
    shards = open_shards(f"{tmp_path}/list.json")
    seen = set()
    for rank in range(4):
        samples = read(shards, Part(seed=0, epoch=0, batch_size=5, rank=rank, world=4))
        seen |= {sample.index for _, batch in samples for sample in batch}
    assert seen == set(range(20))
    assert (tmp_path / "ended").read_text() == "\n"


def test_sizes_are_counted_once(tmp_path, cache, opened):
    paths = write_shards(tmp_path / "shards", sizes=[2, 3])
    for _ in range(2):
        assert tuple(open_shards(str(tmp_path / "shards")).sizes) == (2, 3)
    assert opened == [str(path) for path in paths]
    assert len(list(cache.iterdir())) == 2
    # another file under the same name
    write_shards(tmp_path / "shards", sizes=[4])
    os.utime(paths[0], ns=(0, 0))
    assert tuple(open_shards(str(tmp_path / "shards")).sizes) == (4, 3)
    assert len(opened) == 3


@pytest.mark.parametrize("broken", [b"", b"[]", b"3", b'{"images": null}', b'{"images": "many"}', b'{"im', b"\xff"])
def test_a_broken_cache_is_written_anew(tmp_path, cache, opened, broken):
    write_shards(tmp_path / "shards", sizes=[5])
    open_shards(str(tmp_path / "shards"))
    [file] = cache.iterdir()
    right = file.read_bytes()
    file.write_bytes(broken)
    assert tuple(open_shards(str(tmp_path / "shards")).sizes) == (5,)
    assert len(opened) == 2
    assert [path.read_bytes() for path in cache.iterdir()] == [right]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, opened):
    (tmp_path / "cache").write_text("a file where the folder should be")
    write_shards(tmp_path / "shards", sizes=[5])
    for _ in range(2):
        assert tuple(open_shards(str(tmp_path / "shards")).sizes) == (5,)
    assert len(opened) == 2


def test_names_that_do_not_exist(tmp_path):
    write_shards(tmp_path / "shards")
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "images" / "more").mkdir()
    for spec, message in [
        ("shards/000.tar", r"no such file: .*000.tar \(did you mean .*shards/00.tar\?\)"),
        ("shards/{04..07}.tar", r"no such file: .*06.tar \(did you mean"),
        ("shard/00.tar", r"did you mean .*shards\?"),
        ("none.json", r"no such file: .*none.json"),
        ("empty", r"no .tar .tar.gz .tgz in .*empty \(found: nothing\)"),
        ("images", r"no .tar .tar.gz .tgz in .*images \(found: .png folders\)"),
        ("shards/{00..01.tar", r"is not a pattern such as"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_shards(str(tmp_path / spec))
    with pytest.raises(ValueError, match=r"cannot read the shard s3://bucket/a.tar: .*no gopen handler"):
        open_shards("s3://bucket/a.tar")
    with pytest.raises(
        ValueError, match=r"cannot read the shard pipe:exit 7: its command ended with exit status 7\. F"
    ):
        open_shards("pipe:exit 7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "is not an index of shards"),
        ("[]", "is not an index of shards"),
        ('{"shards": []}', "is not an index of shards.*shardlist"),
        ('{"shardlist": [{"nsamples": 3}]}', "is not an index of shards.*url"),
        ('{"shardlist": [{"url": "00.tar", "nsamples": -1}]}', "nsamples of 00.tar must be a whole number, got -1"),
        ('{"shardlist": [{"url": "00.tar", "nsamples": "7"}]}', "nsamples of 00.tar must be a whole number, got '7'"),
        ('{"shardlist": [{"url": "0.tar", "nsamples": 7}]}', "no such file: .*0.tar .did you mean .*00.tar"),
    ],
)
def test_bad_indices(tmp_path, content, message):
    write_shards(tmp_path, sizes=[1])
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_shards(str(tmp_path / "list.json"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "a.tar holds no samples"),
        ([("LICENSE", b"")], "a.tar holds no samples"),
        (
            [("a.jpg", b""), ("b.txt", b""), ("b.json", b"")],
            "sample 'b' in .*a.tar has no image but .txt .json: .* .png",
        ),
        ([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"1")], "sample 'a' in .*a.tar has no image but .cls"),
        ([("a.jpg", b""), ("a.png", b"")], "sample 'a' in .*a.tar has 2 images, .jpg .png"),
        ([("cat.1.jpg", b""), ("cat.2.jpg", b"")], "sample 'cat' .* 2 images, .1.jpg .2.jpg: .*up to the first dot"),
        ([("a.jpg", b""), ("a.jpg", b"")], "cannot read the shard .*a.tar: a.jpg: duplicate"),
    ],
)
def test_bad_samples(tmp_path, cache, files, message):
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=message):
        open_shards(str(tmp_path / "a.tar"))
    assert not cache.exists()


def test_bad_labels(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.cls", b"cat")])
    with pytest.raises(ValueError, match=r"the .cls of the sample 'a' in .*a.tar is b'cat', not a whole number"):
        list(read(open_shards(str(tmp_path / "a.tar")), Part(seed=0, epoch=0, batch_size=1)))


def middle(data: bytes) -> bytes:
    return data[: len(data) // 2]


def after_a_member(data: bytes) -> bytes:
    return data[: 20 * 1024]


def within_a_header(data: bytes) -> bytes:
    return data[: 20 * 1024 + 100]


def within_a_file(data: bytes) -> bytes:
    return data[: 20 * 1024 + 513]


def bad_header(data: bytes) -> bytes:
    return data[: 20 * 1024] + b"x" * 512 + data[20 * 1024 + 512 :]


def bad_bytes(data: bytes) -> bytes:
    return data[:200] + bytes(200) + data[400:]


def nothing(data: bytes) -> bytes:
    return b""


def text(data: bytes) -> bytes:
    return b"<html>" * 1000


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        *itertools.product([".tar"], [after_a_member, within_a_header, within_a_file, bad_header, nothing, text]),
        *itertools.product([".tar.gz"], [middle, bad_bytes, nothing, text]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_damaged_shards(tmp_path, cache, ending, damage, prefix):
    """Files of one block, so that 2 KiB are a sample; both when counting and when an index gives the size."""
    [path] = write_shards(tmp_path / "shards", sizes=[50], ending=ending)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    message = rf"cannot read the shard {prefix}{path}: .+\. Fetch it or write it again"
    with pytest.raises(ValueError, match=message):
        open_shards(f"{prefix}{path}")
    assert not cache.exists()
    index = tmp_path / "list.json"
    index.write_text(json.dumps({"shardlist": [{"url": f"{prefix}{path}", "nsamples": 50}]}))
    with pytest.raises(ValueError, match=message):
        list(read(open_shards(str(index)), Part(seed=0, epoch=0, batch_size=50)))


@pytest.mark.parametrize("claimed", [8, 12])
def test_a_wrong_size(tmp_path, claimed):
    write_shards(tmp_path, sizes=[10])
    (tmp_path / "list.json").write_text(json.dumps({"shardlist": [{"url": "00.tar", "nsamples": claimed}]}))
    shards = open_shards(str(tmp_path / "list.json"))
    with pytest.raises(ValueError, match=f"00.tar has 10 images where {claimed} were counted.*correct `nsamples`"):
        list(read(shards, Part(seed=0, epoch=0, batch_size=1)))


def test_too_few_images(tmp_path):
    write_shards(tmp_path, sizes=[10])
    shards = open_shards(str(tmp_path / "00.tar"))
    with pytest.raises(
        ValueError, match=r"10 images, fewer than one batch of 4 on each of 3 ranks: use a batch of at mo.*3"
    ):
        next(read(shards, Part(seed=0, epoch=0, batch_size=4, world=3)))
    assert steps_per_epoch(10, 3, 3) == 1
    with pytest.raises(ValueError, match="batch_size and buffer must be at least 1, got 0 and 1000"):
        Part(seed=0, epoch=0, batch_size=0)


def test_without_webdataset(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'pip install "prototile\[shards\]"'):
        open_shards(str(tmp_path))


def test_what_lies_before_a_part_is_passed_over_unread(tmp_path, monkeypatch):
    """Also where files that belong to no sample lie between."""
    files = [
        ("README", b"no ending"),
        ("0.jpg", b"0"),
        ("NOTES", b""),
        ("0.cls", b"0"),
        ("1.jpg", b"1"),
        ("2.jpg", b"2"),
    ]
    shards = open_shards(str(write_tar(tmp_path / "a.tar", files)))
    assert shards.sizes.tolist() == [3]
    extracted, extract = [], tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile, "extractfile", lambda tar, member: extracted.append(member.name) or extract(tar, member)
    )
    samples = list(_read_span(shards, "a", Span(0, 1, 3)))
    assert [(sample.index, sample.id, sample.data) for sample in samples] == [(1, "a/1", b"1"), (2, "a/2", b"2")]
    assert extracted == ["1.jpg", "2.jpg"]


def test_a_block_is_let_go_as_it_is_served(tmp_path):
    shards = open_shards(str(write_shards(tmp_path, (20,))[0]))
    batches = read(shards, Part(0, 0, 5, buffer=20))
    _, first = next(batches)
    references = [weakref.ref(sample) for sample in first]
    del first
    next(batches)
    gc.collect()
    assert all(reference() is None for reference in references)
