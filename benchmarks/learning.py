"""Does every method learn? A minute or so of each on scikit-learn's handwriting, beside the untrained network.

python benchmarks/learning.py                 every method, two seeds, two processes of one thread: about half an hour
python benchmarks/learning.py --only swav --out benchmarks/results     these again; the others stay as they are

Every method trains the same small transformer (16 patches, 64 dims, 2 blocks) with AdamW, by a plain loop over the
package's parts. kNN is measured on frozen features (class token; of masked pixels and latents the mean of the patches),
from the 1,300 training images to the 497 others. What counts as learning: a kNN above the untrained network's in every
seed, and no collapse.
"""

import json
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

import command
import measure
import report
from prototile import backbones, methods, views
from prototile.audit import embedding_health, unique
from prototile.backbones import Backbone
from prototile.balancing import ExplicitBalancing
from prototile.data import Loader, open_source
from prototile.evaluation import FeatureSet, extract, knn
from prototile.methods import MaskedLatents, MaskedPixels, Method
from prototile.schedules import Constant, Cosine, Progress
from prototile.training.optimization import Optimization
from prototile.views import Augmentation

SEEDS, STEPS, BATCH = 2, 300, 128
MORE_STEPS = dict.fromkeys(("esvit", "ibot", "ibot_vmf", "dinov2"), 400) | {"mae": 800, "data2vec": 800}
SIZE, PATCH = 32, 8
PROTOTYPES = 128
COLLAPSED = 0.1  # of the spread of embeddings, which is 1 for a uniform one

_HEAD = {"hidden": 256, "bottleneck": 64}
_CLUSTERS = _HEAD | {"num_prototypes": PROTOTYPES}
_TEACHER = {"momentum": Cosine(0.98, 1.0)}
_DINO = _CLUSTERS | _TEACHER | {"teacher_temperature": Constant(0.04), "head_batch_norm": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "dino": _DINO,
    "dino_vmf": _DINO,
    "esvit": _DINO,
    "ibot": _DINO | {"patch_temperature": Constant(0.04)},
    "ibot_vmf": _DINO | {"patch_temperature": Constant(0.04)},
    "dinov2": _DINO,
    "msn": _CLUSTERS | _TEACHER,
    "pmsn": _CLUSTERS | _TEACHER,
    "excb": _CLUSTERS
    | _TEACHER
    | {
        "kmeans_images": 1280,
        "balancer": partial(ExplicitBalancing, momentum=0.99),
    },
    "swav": _CLUSTERS | {"epsilon": 0.03},
    "simclr": _HEAD,
    "vicreg": {"hidden": 256},
    "barlow_twins": {"hidden": 256},
    "simsiam": {"hidden": 256, "bottleneck": 64},
    "mmcr": _HEAD,
    "mae": {"image_size": SIZE, "decoder_dims": 64, "decoder_depth": 2, "decoder_heads": 4},
    "data2vec": {"blocks": 2, "momentum": Constant(0.996)},
}
RATES = {"swav": 1e-3, "data2vec": 1e-3}  # others: 2e-3
VIEWS = {"dino_vmf": "dino", "esvit": "dino", "ibot_vmf": "ibot"}


def backbone(name: str) -> Backbone:
    shape = {"patch": PATCH, "image_size": SIZE, "dims": 64, "depth": 2, "heads": 4}
    if name == "mae":
        return backbones.vit("tiny", positions="sincos", init="xavier", **shape)
    return backbones.vit("tiny", mask_token="ibot" in name or name in ("dinov2", "data2vec"), init="xavier", **shape)


def augmentation(name: str) -> Augmentation:
    """The published views, small and two of each size; handwriting is not mirrored, and cut less. SwAV has two in all:
    what its smaller crops show cannot be told from what a whole one does.
    """
    small = views.small(views.preset(VIEWS.get(name, name)), size=SIZE, local_size=16, patch=PATCH)
    groups = []
    for group in small.groups:
        scale = (0.5, 1.0) if group.size == SIZE else (0.3, 0.6)
        kept = tuple(replace(view, flip=0.0, scale=scale) for view in group.views[:2])
        groups.append(replace(group, views=kept))
    return replace(small, groups=tuple(groups[:1] if name == "swav" else groups))


def train(name: str, seed: int, steps: int) -> dict[str, Any]:
    """One run: what its features were worth before and after."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    method = methods.METHODS[name](backbone(name), **OPTIONS[name])
    made = augmentation(name)
    method.check(made)
    loader = Loader(open_source("handwriting"), made, BATCH, seed=seed, epochs=-(-steps // 10), workers=0)
    untrained = _knn(method)
    seconds = measure.CPUMeter().seconds(lambda: _loop(method, loader, steps, RATES.get(name, 2e-3)))
    known = _features(method)["train"]
    result = {"untrained": untrained, "trained": _knn(method), "seconds": seconds}
    result["spread"] = embedding_health(known.features).spread
    if hasattr(method.student, "prototypes"):
        result["unique"] = unique(method.student.prototypes[0].directions().detach()).count
    return result


def _loop(method: Method, loader: Loader, steps: int, rate: float) -> None:
    optimization = Optimization(
        lr=Cosine(rate, 1e-6, warmup_epochs=0.1), lr_scaling="none", weight_decay=Constant(0.04), clip=3.0
    )
    optimizer = optimization.build(method, BATCH)
    batches = _endless(loader)
    state = loader.state_dict()
    method.prepare(batches)
    loader.load_state_dict(state)
    batches = _endless(loader)
    for step in range(steps):
        progress = Progress(step, steps)
        terms = method(next(batches).views, progress)
        optimizer.zero_grad()
        terms.loss.backward()
        optimization.clip_(method)
        optimization.set_values_(optimizer, progress)
        optimizer.step()
        method.after_step(progress)


def _endless(loader: Loader):
    while True:
        yield from loader


class PatchMean(Backbone):
    """A backbone whose pooled features are the mean of its patches, which is what masked modelling trains."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.whole, self.dims, self.patch = backbone, backbone.dims, backbone.patch

    def forward(self, images, keep=None, mask=None, *, blocks=0, patches=True):
        features = self.whole(images, keep, mask, blocks=blocks)
        return replace(features, pooled=features.patches.mean(1))

    @property
    def layers(self):
        return self.whole.layers

    def keep_all_paths_(self):
        self.whole.keep_all_paths_()


def _features(method: Method) -> dict[str, FeatureSet]:
    backbone = PatchMean(method.backbone) if isinstance(method, MaskedPixels | MaskedLatents) else method.backbone
    splits = ("train", "test")
    return {split: extract(backbone, open_source("handwriting", split), size=SIZE) for split in splits}


def _knn(method: Method) -> float:
    known, asked = _features(method).values()
    return knn(known.features, known.labels, asked.features, asked.labels).accuracy


def measured(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    if device.type != "cpu":
        raise ValueError("this one is for CPUs: two processes of one thread")
    names = [name for name in OPTIONS if only is None or any(word in name for word in only)]
    seeds = range(1 if quick else SEEDS)
    steps = {name: 3 if quick else MORE_STEPS.get(name, STEPS) for name in names}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {(name, seed): pool.submit(train, name, seed, steps[name]) for seed in seeds for name in names}
        for (name, seed), future in futures.items():
            runs[name].append(future.result())
            print(name, seed, runs[name][-1], flush=True)
    if only and not quick:
        before = json.loads((command.RESULTS / "learning.json").read_text())["runs"]
        runs = {name: (before | runs)[name] for name in OPTIONS}
    return {
        "device": "cpu",
        "quick": quick,
        "machine": measure.machine(device, ("torchvision", "timm")),
        "method": {"what": " ".join(__doc__.split("\n\n")[2].split())},
        "steps": steps,
        "batch": BATCH,
        "runs": runs,
    }


def _goal(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    gain = min(run["trained"] - run["untrained"] for run in runs)
    spread = min(run["spread"] for run in runs)
    return {
        "goal": f"{name}: the smallest gain of kNN over the untrained network, with a spread above {COLLAPSED:g}",
        "relation": ">",
        "bound": 0,
        "value": gain,
        "met": gain > 0 and spread > COLLAPSED,
    }


def markdown(run: dict[str, Any]) -> str:
    header = ("method", "untrained kNN", "trained kNN", "spread", f"unique of {PROTOTYPES}", "CPU seconds", "seeds")
    rows = (
        (name, *(_cell(runs, key, form) for key, form in FORMS.items()), str(len(runs)))
        for name, runs in run["runs"].items()
    )
    goals = [_goal(name, runs) for name, runs in run["runs"].items()]
    return report.learning(run | {"goals": goals}, header, rows)


FORMS: dict[str, Callable[[float], str]] = {
    "untrained": "{:.1%}".format,
    "trained": "{:.1%}".format,
    "spread": "{:.2f}".format,
    "unique": "{:.0f}".format,
    "seconds": "{:.0f}".format,
}


def _cell(runs: list[dict[str, Any]], key: str, form: Callable[[float], str]) -> str:
    """The mean over seeds, and the spread where there are several."""
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    spread = f" ± {form(statistics.stdev(values))}" if len(values) > 1 and key != "seconds" else ""
    return form(statistics.mean(values)) + spread


if __name__ == "__main__":
    command.main(__doc__, "learning", measured, markdown)
