"""`finetune`: choices, seeds, records, resuming; and that what comes out has learnt."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from finetuning_cases import RESNET, SIZE, VIT, Flat, checkpoint, few, finetune_alone, resnet_recipe, vit_recipe
from prototile.backbones import Backbone
from prototile.checkpoints import build, load
from prototile.data import Arrays, Source, Subset, handwriting
from prototile.evaluation import extract, linear
from prototile.training import Interrupted
from prototile.training.checkpointing import read
from prototile.training.finetuning import FineTuned, Recipe, finetune

CASES = [
    (VIT, vit_recipe(6, lrs=(8e-3,), batch=26, per_batch=26, smallest_crop=0.8)),
    (RESNET, resnet_recipe(3)),
]
QUIET = {"accelerator": "cpu", "workers": 0, "print_every": 10_000}


def run(
    out: Path, recipe: Recipe, train: Source | None = None, backbone: Backbone | None = None, **options
) -> FineTuned:
    torch.manual_seed(0)
    train = few(150) if train is None else train
    return finetune(
        build(VIT) if backbone is None else backbone,
        train,
        few(60, "test"),
        recipe=recipe,
        out=out,
        **(QUIET | options),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("described", "recipe"), CASES, ids=["vit", "resnet"])
def test_a_checkpoint_learns_more_than_its_features_say(tmp_path, described, recipe):
    backbone = load(checkpoint(tmp_path / "start", described, recipe)).backbone
    assert isinstance(backbone, Backbone)
    before = {name: x.clone() for name, x in backbone.state_dict().items()}
    train, test = handwriting("train"), handwriting("test")
    sides = [extract(backbone, part, size=SIZE) for part in (train, test)]
    start = linear(sides[0].features, sides[0].labels, sides[1].features, sides[1].labels).accuracy
    record = finetune(backbone, train, test, recipe=recipe, out=tmp_path / "run", **QUIET)
    assert record.value > start + 0.03
    assert record.n == 497
    assert all(torch.equal(x, before[name]) for name, x in backbone.state_dict().items())


@pytest.mark.slow
def test_two_ranks_learn_as_one(tmp_path, together, start):
    """The same scores after every epoch, and the same weights up to rounding; each rank has half of a batch."""
    alone = start(finetune_alone, tmp_path / "one")
    assert alone.wait() == 0, alone.stderr
    together(finetune_alone, tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "finetuned.json").read_text()) for name in ("one", "two"))
    assert two["value"] == one["value"]
    assert two["scores"] == one["scores"]
    a, b = (read(tmp_path / name / "seed-0" / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    assert a.keys() == b.keys()
    apart = {name: float((x.double() - b[name].double()).abs().max()) for name, x in a.items()}
    # keys' biases have no gradient but rounding, which Adam makes as large as any
    assert max(x for name, x in apart.items() if not name.endswith("qkv.bias")) < 1e-5


def test_what_a_run_leaves(tmp_path):
    record = run(tmp_path, vit_recipe(2), name="mine", seeds=(3, 4), config={"weights": "abc"}, about={"layout": "x"})
    assert json.loads((tmp_path / "finetuned.json").read_text()) == record.as_dict()
    assert record.seeds == (3, 4)
    assert len({str(found) for found in record.scores}) == 2
    assert record.value == pytest.approx(sum(record.values) / 2)
    assert record.error == pytest.approx(abs(record.values[0] - record.values[1]) / 2)
    assert record.chosen == {"lr": 4e-3, "head_lr": 4e-3}
    assert (record.select_on, record.tried, record.train_images) == ("given", {}, 150)
    assert record.classes == {"head": 0, "middle": 0, "tail": 10}
    assert record.settings["weights"] == "abc"
    assert record.settings["layout"] == "x"
    assert record.settings["crop"]["size"] == SIZE
    assert str(record).startswith("mine: top1 ")
    folder = tmp_path / "seed-3"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {"config.yaml", "metrics.jsonl", "train.log", "checkpoints/last.ckpt", "model/head.safetensors"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["test/top1"] == record.values[0]
    assert lines[0]["lr"] > lines[1]["lr"] > 0


class Killing(Source):
    """Asks for the end of its process when an image is read for the n-th time."""

    def __init__(self, source: Source, reads: int):
        self._source, self.reads = source, reads
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int):
        self.reads -= 1
        if self.reads == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._source.image(index)

    def id(self, index: int) -> str:
        return self._source.id(index)


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    """With drop path, mixing, RandAugment and two seeds; stopped within an epoch of the first."""
    recipe = vit_recipe(2, mixup=0.8, cutmix=1.0, erasing=0.25, rand_augment="rand-m9-mstd0.5-inc1", repeats=3)
    options = {"seeds": (0, 1)}
    whole = run(tmp_path / "whole", recipe, **options)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", recipe, Killing(few(150), 220), **options)
    stopped = read(tmp_path / "parts" / "seed-0" / "checkpoints" / "last.ckpt")["global_step"]
    assert 0 < stopped < 6
    assert not (tmp_path / "parts" / "finetuned.json").exists()
    parts = run(tmp_path / "parts", recipe, **options, resume=True)
    assert [str(found) for found in parts.scores] == [str(found) for found in whole.scores]
    for seed in (0, 1):
        a, b = (
            read(tmp_path / name / f"seed-{seed}" / "checkpoints" / "last.ckpt")["state_dict"]
            for name in ("whole", "parts")
        )
        assert all(torch.equal(a[name], b[name]) for name in a)
    again = run(tmp_path / "parts", recipe, **options, resume=True)
    assert [str(found) for found in again.scores] == [str(found) for found in whole.scores]


def test_other_settings_do_not_go_on(tmp_path):
    run(tmp_path, vit_recipe(1))
    with pytest.raises(FileExistsError, match="there is a run in"):
        run(tmp_path, vit_recipe(1))
    with pytest.raises(ValueError, match=r"made with other settings: .*drop_path was 0.1 and is 0.2"):
        run(tmp_path, vit_recipe(1, drop_path=0.2), resume=True)
    assert run(tmp_path, vit_recipe(1, drop_path=0.2), overwrite=True).n == 60


def test_the_best_rate_is_chosen_on_images_held_out(tmp_path):
    recipe = resnet_recipe(2, lrs=(1e-6, 0.01), head_lr=3e-6)
    record = run(tmp_path, recipe, few(300), Flat(3 * SIZE**2))
    assert record.chosen == {"lr": 0.01, "head_lr": pytest.approx(0.03)}  # in proportion
    assert record.select_on == "validation"
    assert record.tried["0.01"] > record.tried["1e-06"]
    trained = [read(tmp_path / "select" / f"lr-{lr}" / "checkpoints" / "last.ckpt") for lr in ("1e-06", "0.01")]
    assert {one["prototile"]["settings"]["config"]["images"] for one in trained} == {270}
    assert record.train_images == 300


def test_choosing_on_the_test_images_is_said(tmp_path):
    recipe = vit_recipe(1, lrs=(4e-3, 1e-6))
    record = run(tmp_path, recipe, select_on="test")
    assert record.select_on == "test"
    assert "chosen on the test images" in str(record)
    assert record.value == record.tried["0.004"]
    assert not (tmp_path / "seed-0").exists()  # it is the run that was chosen


def test_validation_images_of_ones_own(tmp_path):
    recipe = vit_recipe(1, lrs=(4e-3, 1e-6))
    record = run(tmp_path, recipe, validation=few(20, "test"))
    config = read(tmp_path / "select" / "lr-0.004" / "checkpoints" / "last.ckpt")["prototile"]["settings"]["config"]
    assert config["images"] == 150
    assert all((x * 20).is_integer() for x in record.tried.values())


def test_head_middle_and_tail(tmp_path):
    labels = np.array([0] * 110 + [1] * 20 + [2] * 10)
    images = np.random.default_rng(0).integers(0, 256, (140, SIZE, SIZE, 3), np.uint8)
    record = run(tmp_path, vit_recipe(1), Arrays(images, labels, tuple("abcdefghij")), metric="per_class")
    assert record.classes == {"head": 1, "middle": 1, "tail": 8}
    found = record.scores[0]
    assert record.value == found.per_class
    assert found.per_class == pytest.approx((found.head + found.middle + 8 * found.tail) / 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": Arrays(np.zeros((60, 8, 8), np.uint8))}, "there are no labels"),
        ({"train": Arrays(np.zeros((60, 8, 8), np.uint8), np.full(60, -1))}, "no class; leave out images without one"),
        ({"metric": "accuracy"}, "metric must be one of top1, top5"),
        ({"metric": "head"}, "no class is in the head of these images"),
        ({"seeds": ()}, "seeds must be different whole numbers"),
        ({"seeds": (1, 1)}, "seeds must be different whole numbers"),
        ({"accumulate": 3}, "a batch of 50 cannot be parted into 3"),
        ({"recipe": vit_recipe(1, batch=151)}, "150 images are less than one batch of 151"),
        ({"recipe": vit_recipe(1, batch=25, mixup=0.8)}, "the batch must be even, got 25"),
        ({"every": 0}, "at least every one, got every=0"),
        ({"resume": True, "overwrite": True}, "either resumed or overwritten"),
        ({"recipe": vit_recipe(1, lrs=(1e-3, 2e-3)), "held": 1.5}, r"held out lies in \(0, 1\)"),
    ],
)
def test_what_cannot_be(tmp_path, options, said, unchecked):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, **({"recipe": vit_recipe(1)} | options))


def test_one_image_of_each_class_has_none_to_hold_out(tmp_path):
    first = [int(np.flatnonzero(handwriting().labels == k)[0]) for k in range(10)]
    train = Subset(handwriting(), np.array(first))
    with pytest.raises(ValueError, match="none can be held out, so give images to validate on"):
        run(tmp_path, vit_recipe(1, lrs=(1e-3, 2e-3), batch=10), train)
