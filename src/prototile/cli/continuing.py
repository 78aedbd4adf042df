"""`prototile continue`, from Python and from a command line: a checkpoint, images, and a criterion."""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml

from prototile.checkpoints import load
from prototile.cli.encoding import crop_of
from prototile.cli.running import check_out, check_ranks, check_views, first_rank, usual_test
from prototile.data import Loader, Shards, Source, open_data, open_source
from prototile.evaluation import Crop
from prototile.training.auditing import EpochAudits
from prototile.training.bar import Bar
from prototile.training.continuing import (
    BATCH,
    CONTINUED,
    EPOCHS,
    Bench,
    Continued,
    Criterion,
    Judge,
    KeepBest,
    Restored,
    add_ons,
    continue_training,
    planned,
    restore,
    space_of,
    views_for,
)
from prototile.training.logs import GoOn, JsonLines, TensorBoard
from prototile.training.monitor import Monitor
from prototile.views import Augmentation

logger = logging.getLogger(__name__)

_COMMAND = ("config", "print_config", "resume", "overwrite")  # what is about a command, not about the run


def continue_checkpoint(
    path: str | Path,
    *,
    data: str,
    out: str | Path,
    criterion: Criterion = "e2mc",
    coefficients: Mapping[str, Any] | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    split: str | None = None,
    test_split: str | None = None,
    judge_data: str | None = None,
    views: Augmentation | None = None,
    size: int | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    lr: float | None = None,
    warmup: int = 1,
    stages: int = 3,
    keep: Literal["best", "last"] = "best",
    judge_every: int = 1,
    limit: int = 5000,
    accumulate: int = 1,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int | Literal["auto"] = "auto",
    nodes: int = 1,
    sync_batch_norm: bool = False,
    workers: int | None = None,
    seed: int = 0,
    limit_steps: int | None = None,
    checkpoint_minutes: float = 30.0,
    monitor_every: int = 50,
    print_every: int = 50,
    tensorboard: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Continued:
    """Goes on from a checkpoint, of any project that is known, for a few epochs; leaves a run in `out`, and says what
    the network was like before and after.

    `data` is named as for `pretrain`, and is what the network shall be good for: the images that it was trained on, or
    others. `criterion` is added to the method's own loss with its published coefficients, which `coefficients` change.
    `method` and its `options` are for files that do not tell theirs. `views` are the method's own where not given, in
    the `size` that the run has seen, or 224 pixels. `lr` is the learning rate as it stands, in place of a hundredth of
    the base rate. `judge_data` is what the guard looks at instead of `data`. Other arguments are those of `pretrain`
    and of `prototile.training.continuing.continue_training`.
    """
    given = {name: x for name, x in locals().items() if name not in _COMMAND}
    out = Path(out)
    check_out(out, resume, overwrite)
    for name, number in {
        "epochs": epochs,
        "batch": batch,
        "accumulate": accumulate,
        "judge_every": judge_every,
    }.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    check_ranks(batch, accelerator, devices, nodes)
    source = open_data(data, split)
    looked = _looked_at(source, judge_data)
    restored = restore(path, method=method, options=options, seed=seed)
    add_ons(criterion, restored.name, coefficients)  # an error of theirs comes first
    augmentation, described, crop = _shown(restored, path, views, size)
    check_views(restored.method, augmentation)
    plan = planned(restored, warmup, lr)
    plan.groups(restored.method, batch * accumulate)
    images = source.num_images if isinstance(source, Shards) else len(source)
    if batch > images:
        raise ValueError(f"{images} images are less than one batch of {batch}: give batch={images} or less")
    test = usual_test(judge_data or data, test_split, False)
    bench = Bench.of(looked, test, crop, space_of(restored.name), limit=limit)
    judge = Judge.of(looked, crop, limit=limit)
    total = epochs + (warmup if restored.rebuilt else 0)
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())

    def loader() -> Loader:
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        return Loader(source, augmentation, batch, seed=seed, epochs=total, device=device, workers=workers)

    if first_rank():
        logger.info("%s", _summary(restored, images, total, batch * accumulate, criterion, str(out)))
    monitor = Monitor(monitor_every) if monitor_every else None
    watching = [
        GoOn(),
        *([] if monitor is None else [monitor, EpochAudits(out, monitor)]),
        Bar(monitor, every=print_every),
    ]
    return continue_training(
        restored,
        loader,
        bench=bench,
        guard=lambda folder: KeepBest(judge, folder, every=judge_every),
        out=out,
        criterion=criterion,
        coefficients=coefficients,
        optimization=plan,
        epochs=epochs,
        warmup=warmup,
        stages=stages,
        keep=keep,
        callbacks=watching,
        loggers=[JsonLines(out), *([TensorBoard(out)] if tensorboard else [])],
        checkpoint=Path(path).resolve().name,
        config={"views": described, "data": data, "split": split},
        files={"config.yaml": _yaml(given)},
        precision=precision,
        accumulate=accumulate,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        sync_batch_norm=sync_batch_norm,
        seed=seed,
        limit_steps=limit_steps,
        checkpoint_minutes=checkpoint_minutes,
        resume=resume,
        overwrite=overwrite,
    )


def _looked_at(source: Source | Shards, judge_data: str | None) -> Source:
    """What the guard and the table look at."""
    if judge_data is not None:
        return open_source(judge_data)
    if isinstance(source, Shards):
        raise ValueError("shards are read in order, so the guard cannot look at them: give it images, judge_data")
    return source


def _shown(
    restored: Restored, path: str | Path, views: Augmentation | None, size: int | None
) -> tuple[Augmentation, Mapping[str, Any] | None, Crop]:
    """Views to train on, how they are described, and how images are shown to what measures."""
    if views is not None:
        return views, None, Crop(views.groups[0].size, None, views.normalization)
    if restored.views is not None and size in (None, restored.views.groups[0].size):
        own = restored.views
        return own, restored.described_views, Crop(own.groups[0].size, None, own.normalization)
    crop = crop_of(load(path), size)
    made, described = views_for(restored.name, crop.size, restored.method.backbones[0].patch)
    if made.normalization != crop.normalization:
        raise ValueError("the run has seen pixels that were normalised in another way: give its views")
    return made, described, crop


def _summary(restored: Restored, images: int, epochs: int, batch: int, criterion: str, out: str) -> str:
    made = f"{restored.layout}, {restored.network}: {restored.name}"
    said = "".join(f"; {each}" for each in restored.said)
    return f"{made}{said}. {images:,} images, {epochs} epochs, batches of {batch:,}, criterion {criterion}; into {out}"


def _yaml(settings: Mapping[str, Any]) -> str:
    """The settings of a command, as `--config` takes them."""
    named = {("checkpoint" if name == "path" else name): x for name, x in settings.items() if name != "views"}
    plain = {
        name: str(x) if isinstance(x, Path) else dict(x) if isinstance(x, Mapping) else x for name, x in named.items()
    }
    return yaml.safe_dump(plain, sort_keys=False, width=120)


# ------------------------------------------------------------------------------------------------- command line
def command(words: Sequence[str]) -> int:
    """`prototile continue`; 3 where the run broke off, after what was best has been kept."""
    parser = _parser()
    first, _ = parser.parse_known_args(words)
    if first.config is not None:
        parser.set_defaults(**_read(first.config))
    given = vars(parser.parse_args(words))
    shown = given.pop("print_config")
    given.pop("config")
    given["coefficients"], given["options"] = (_pairs(given[name]) for name in ("coefficients", "options"))
    given["devices"] = given["devices"] if given["devices"] == "auto" else int(given["devices"])
    given["tensorboard"] = not given.pop("no_tensorboard")
    if shown:
        print(_yaml({name: x for name, x in given.items() if name not in _COMMAND}), end="")
        return 0
    path = given.pop("checkpoint")
    for name, value in {"CHECKPOINT": path, "--data": given["data"], "--out": given["out"]}.items():
        if value is None:
            raise ValueError(f"{name} is missing: prototile continue CHECKPOINT --data DATA --out FOLDER")
    result = continue_checkpoint(path, **given)
    if first_rank():
        print(result)
        print(f"\nThe run: {given['out']}   (numbers: {Path(given['out']) / 'continued.json'})")
    return 0 if result.diverged is None else 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prototile continue",
        description="Goes on from any checkpoint for a few epochs, with a criterion that spreads embeddings; "
        "measures before and after, and keeps the best weights.",
        epilog="Exit codes: 0 done, 2 a file or an option is wrong, 3 the run broke off (the best weights are kept).",
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a run, or a checkpoint of any project that is known")
    add("--data", help="images: digits, cifar10:ROOT, folder:PATH, classes:PATH, tar files (docs/data.md)")
    add("--out", help="the folder of the new run")
    add("--criterion", choices=get_args(Criterion), default="e2mc", help="what is added to the method's loss (e2mc)")
    add("--coefficient", dest="coefficients", action="append", default=[], metavar="NAME=VALUE",
        help="another weight than the published one: beta=500; may be given several times")  # fmt: skip
    add("--method", choices=CONTINUED, metavar="NAME", help="for files that do not tell their method, or another one")
    add("--option", dest="options", action="append", default=[], metavar="NAME=VALUE",
        help="of the method, for parts that the file lacks: num_prototypes=1024")  # fmt: skip
    add("--split", help="another split of the data than the one to train on")
    add("--test-split", help="the split that before and after are measured on (test or val, or a fifth of the images)")
    add("--judge-data", help="labelled images for guard and table, instead of those to train on")
    add("--size", type=int, help="pixels of the largest views (as the run has seen, or 224)")
    add("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    add("--batch", type=int, default=BATCH, help="images of a batch, over all ranks (%(default)s)")
    add("--lr", type=float, help="the learning rate as it stands (0.01 of the base rate)")
    add(
        "--warmup", type=int, default=1, help="epochs more for parts that are rebuilt, the backbone rests (%(default)s)"
    )
    add("--stages", type=int, default=3, help="epochs in which the backbone then wakes layer by layer (%(default)s)")
    add("--keep", choices=("best", "last"), default="best", help="which weights are kept (best, by the guard)")
    add("--judge-every", type=int, default=1, help="epochs between two looks of the guard (%(default)s)")
    add("--limit", type=int, default=5000, help="images that guard and table look at, of each side (%(default)s)")
    add("--accumulate", type=int, default=1, help="batches of an optimiser step (%(default)s)")
    add("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true")
    add("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    add("--devices", default="auto", help="how many devices of this machine (auto)")
    add("--nodes", type=int, default=1, help="how many machines (%(default)s)")
    add("--sync-batch-norm", action="store_true", help="batch norm over all ranks")
    add("--workers", type=int, help="processes that read images (a core less than there are)")
    add("--seed", type=int, default=0, help="of views, order and rebuilt parts (%(default)s)")
    add("--limit-steps", type=int, help="end after so many steps")
    add("--checkpoint-minutes", type=float, default=30.0, help="minutes between checkpoints (%(default)s)")
    add("--monitor-every", type=int, default=50, help="steps between two looks at health; 0: never (%(default)s)")
    add("--print-every", type=int, default=50, help="steps between two lines of progress (%(default)s)")
    add("--no-tensorboard", action="store_true", help="write no events for TensorBoard")
    add("--resume", action="store_true", help="go on where the run in this folder stopped")
    add("--overwrite", action="store_true", help="remove the run in this folder first")
    add("--config", metavar="FILE", help="settings as --print-config and runs write them; what is given here wins")
    add("--print-config", "--print_config", action="store_true", help="print all settings, and train nothing")
    return parser


def _read(path: str) -> dict[str, Any]:
    """Settings from a file, as defaults of the command line."""
    found = yaml.safe_load(Path(path).read_text())
    known = {action.dest for action in _parser()._actions} - {"help", *_COMMAND} | {"tensorboard"}
    unknown = sorted(set(found) - known) if isinstance(found, dict) else ["no settings"]
    if unknown:
        said = ", ".join(unknown)
        raise ValueError(f"{path} is no configuration of prototile continue, it holds: {said}")
    for name in ("coefficients", "options"):
        found[name] = [f"{key}={value}" for key, value in (found.get(name) or {}).items()]
    found["no_tensorboard"] = not found.pop("tensorboard", True)
    return found


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"write NAME=VALUE, got {word!r}")
        found[name] = yaml.safe_load(value)
        if isinstance(found[name], float) and not math.isfinite(found[name]):
            raise ValueError(f"{name} must be a number, got {value}")
    return found
