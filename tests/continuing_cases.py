"""What tests of continuing share: drawn images, files, small runs that go on."""

import numpy as np
import torch

from prototile.data import Loader
from prototile.data.source import Arrays
from prototile.evaluation import Crop
from prototile.schedules import Cosine, Progress
from prototile.training.continuing import (
    Bench,
    Judge,
    KeepBest,
    continue_training,
    planned,
    restore,
    views_for,
)
from prototile.training.optimization import Optimization, Special
from training_cases import SIDE

SIZE = 32
TEMPERATURE = 0.1
END = Progress(10, 10)

SWAV = Optimization(lr=Cosine(1.0, 0.01), optimizer="larc", roles={"prototypes": Special(freeze_steps=3)})


def saved(tmp_path, contents, name="file.pth"):
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def drawn(count=60, classes=3, size=SIZE, *, labelled=True):
    """Images whose colour tells their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 100, (count, size, size, 3), np.uint8)
    images[np.arange(count), ..., labels] += 100
    return Arrays(images, labels=labels if labelled else None, name="drawn")


def batch_for(name, patch, count=6):
    views, _ = views_for(name, SIZE, patch)
    return next(iter(Loader(drawn(count), views, count, workers=0, epochs=1)))


def going_on(path, out, *, source=None, keep="best", lr=None, method=None, options=None, judge=None, batch=20, **more):
    """Continues on the drawn images: three batches an epoch."""
    source = drawn() if source is None else source
    restored = restore(path, method=method, options=options)
    size = SIDE if restored.layout == "prototile" else SIZE
    views = restored.views or views_for(restored.name, size, restored.method.backbones[0].patch)[0]
    crop = Crop(size)
    settings = {"criterion": "e2mc", "epochs": 2, "accelerator": "cpu"} | more
    epochs = settings["epochs"] + (settings.get("warmup", 1) if restored.rebuilt else 0)
    return continue_training(
        restored,
        lambda: Loader(source, views, batch, workers=0, epochs=epochs),
        bench=Bench.of(source, None, crop, "hypersphere"),
        guard=lambda folder: KeepBest(judge or Judge.of(source, crop), folder),
        out=out,
        optimization=planned(restored, settings.get("warmup", 1), lr),
        keep=keep,
        **settings,
    )


def weights_of(folder):
    contents = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {name.removeprefix("method."): x for name, x in contents["state_dict"].items()}


class Falling(Judge):
    """A judge of whom every look is worth less, or as told."""

    told = iter(())

    def __call__(self, backbone):
        return next(self.told)


def judge_of(*scores):
    judge = Falling(drawn(), drawn(), Crop(SIDE))
    object.__setattr__(judge, "told", iter(scores))
    return judge
