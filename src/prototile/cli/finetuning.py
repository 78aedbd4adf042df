"""`prototile finetune`, from Python and from a command line: a checkpoint, labelled images and a recipe."""

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from torch import nn

from prototile import distributed
from prototile.checkpoints import Imported, load
from prototile.checkpoints.imported import Choice
from prototile.cli.encoding import crop_of
from prototile.cli.running import usual_test
from prototile.data import Source, named, open_source, stratified
from prototile.data.subsets import listed
from prototile.evaluation.records import FILE, append, finished
from prototile.evaluation.stored import fingerprint, weights_hash
from prototile.training.continuing.described import describe
from prototile.training.finetuning import RECIPES, FineTuned, Recipe, finetune, first_layer
from prototile.training.finetuning import recipe as published
from prototile.training.finetuning.running import RECORD
from prototile.training.finetuning.scores import METRICS
from prototile.training.folder import environment

logger = logging.getLogger(__name__)

_SMALL, _SMALLEST = 128, 0.3  # images below so many pixels have crops of at least this share, as `views.small`
_FIELDS = {field.name for field in dataclasses.fields(Recipe)}


def finetune_checkpoint(
    path: str | Path,
    *,
    data: str,
    out: str | Path,
    recipe: str | Recipe = "plain",
    split: str | None = None,
    test: str | None = None,
    test_split: str | None = None,
    validation: str | None = None,
    validation_split: str | None = None,
    network: Choice = "evaluated",
    ids: str | Path | None = None,
    subset_seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> FineTuned:
    """Trains the backbone of a checkpoint, of any project that is known, on labels; leaves runs and a record in `out`,
    and the record among the evaluations of the run that `path` is, or in `out`.

    `data` is named as for `pretrain`; it is tested on `test`, or on another split of `data`. `recipe` is a name of
    `prototile.training.finetuning.RECIPES`, and `settings` change it by the names of its fields: `{"epochs": 5}`
    keeps the places of warm-up and milestones. Of the labels the recipe's share is learnt from, the same of each class
    and drawn by `subset_seed`, or the images that the file `ids` names, line by line. Images are shown as the
    checkpoint says, or in the recipe's size. Other options are those of `prototile.training.finetuning.finetune`.
    """
    imported = load(path, network=network)
    backbone = imported.backbone
    if backbone is None:
        raise ValueError(f"{path} ({imported.layout}) holds no backbone that can be built here: nothing to fine-tune")
    name = recipe if isinstance(recipe, str) else "own"
    chosen, normalization = _adjusted(recipe, dict(settings or {}), imported, path)
    train = _part(open_source(data, split), chosen.share, ids, subset_seed)
    tested = _tested(data, split, test, test_split)
    judged = None
    if validation is not None or validation_split is not None:
        judged = open_source(validation or data, validation_split)
    weights = weights_hash(backbone)
    described = _described(imported) or describe(backbone)
    config = {"weights": weights, "network": network, "data": data, "split": split, "subset_seed": subset_seed}
    about = {
        "checkpoint": Path(path).resolve().name,
        "layout": imported.layout,
        "hashes": {"weights": weights, "train": fingerprint(train), "test": fingerprint(tested)},
        "packages": environment()["packages"],
    }
    logger.info("%s; %s to learn from, %s to test on", imported, f"{len(train):,} images", f"{len(tested):,}")
    record = finetune(
        backbone,
        train,
        tested,
        recipe=chosen,
        out=out,
        name=name,
        projection=_projection(imported) if chosen.projection else None,
        validation=judged,
        normalization=normalization,
        config=config if described is None else config | {"method": {"init_args": {"backbone": described}}},
        about=about,
        **options,
    )
    if distributed.rank() == 0:
        _noted(record, records_of(path, out))
    return record


def records_of(path: str | Path, out: str | Path) -> Path:
    """The file of records: a run's own, or the one in `out`."""
    return (Path(path) if Path(path).is_dir() else Path(out)) / FILE


def _noted(record: FineTuned, file: Path) -> None:
    """Adds the record to a file of evaluations; once, however often the same call is resumed."""
    line = record.as_record()
    if all(found.values != line.values for found in finished(file, line.key)):
        append(file, line)


def command(words: Sequence[str]) -> None:
    """`prototile finetune`."""
    given = vars(_parser().parse_args(words))
    settings = dict(_setting(text) for text in given.pop("set"))
    for name in ("epochs", "batch", "lrs", "head_lr", "size"):
        if (value := given.pop(name)) is not None:
            settings[name] = tuple(value) if isinstance(value, list) else value
    given["seeds"] = tuple(given["seeds"])
    checkpoint = given.pop("checkpoint")
    record = finetune_checkpoint(checkpoint, settings=settings, **given)
    print(record)
    print(f"the record is {Path(given['out']) / RECORD}, and a line of {records_of(checkpoint, given['out'])}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prototile finetune",
        description="Trains the backbone of a checkpoint and a linear head on labels, by a published recipe.",
        epilog=f"Recipes: {', '.join(RECIPES)}. Their fields, for --set: {', '.join(sorted(_FIELDS))}.",
    )
    add = parser.add_argument
    add("checkpoint", help="a run, or a checkpoint of any project that is known")
    add("--data", required=True, help="labelled images to train on, as for `prototile pretrain`")
    add("--out", required=True, help="folder of the runs and of the record")
    add("--recipe", default="plain", help="a published recipe (plain)")
    add("--split", help="another split of the data than the one to train on")
    add("--test", help="images to test on (by default the test or val split of the data)")
    add("--test_split", help="their split")
    add("--validation", help="images to choose the learning rate on (by default a tenth of those to train on)")
    add("--validation_split", help="their split")
    add("--held", type=float, default=0.1, help="the share of each class that is held out to choose on (0.1)")
    add("--select_on", choices=("validation", "test"), default="validation", help="test flatters, and is recorded")
    add("--metric", choices=METRICS, default="top1", help="what the record's number is, and what is chosen by")
    add("--groups", choices=("counts", "thirds"), default="counts", help="head, middle, tail: by 100 and 20 images")
    add("--network", choices=get_args(Choice), default="evaluated", help="which of those in the file")
    add("--ids", help="a file that names the images to train on, line by line, in place of the recipe's share")
    add("--subset_seed", type=int, default=0, help="which images a share of the labels holds (0)")
    add("--seeds", type=int, nargs="+", default=[0], help="runs: of head, order and views (0)")
    add("--epochs", type=int, help="epochs, in place of the recipe's; warm-up and milestones keep their places")
    add("--batch", type=int, help="images of a step; learning rates follow in proportion")
    add("--lrs", type=float, nargs="+", help="learning rates to choose from, for the recipe's batch")
    add("--head_lr", type=float, help="the head's, beside the first of them")
    add("--size", type=int, help="pixels of a view")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field of the recipe")
    add("--every", type=int, default=1, help="epochs between two scores (1)")
    add("--eval_batch", type=int, default=256, help="images that are scored at a time")
    add("--workers", type=int, help="processes that read images")
    add("--accumulate", type=int, default=1, help="parts of a batch that are computed one after the other")
    add("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true")
    add("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    add("--devices", type=_devices, default="auto", help="devices of this machine")
    add("--nodes", type=int, default=1, help="machines")
    add("--resume", action="store_true", help="go on where an interrupted call stopped")
    add("--overwrite", action="store_true", help="remove the runs of these seeds first")
    return parser


def _devices(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set takes FIELD=VALUE, got {text!r}: --set drop_path=0.2")
    found = yaml.safe_load(value)
    return name, tuple(found) if isinstance(found, list) else found


def _adjusted(
    recipe: str | Recipe, settings: dict[str, Any], imported: Imported, path: str | Path
) -> tuple[Recipe, Any]:
    """The recipe for this checkpoint's images, changed by the settings; and how pixels are normalised."""
    if unknown := sorted(set(settings) - _FIELDS):
        raise ValueError(f"a recipe has no {', '.join(unknown)}: it has {', '.join(sorted(_FIELDS))}")
    base = published(recipe) if isinstance(recipe, str) else recipe
    crop = crop_of(imported, settings.pop("size", None))
    changed: dict[str, Any] = {"size": crop.size}
    if crop.size < _SMALL and "smallest_crop" not in settings and isinstance(recipe, str):
        changed["smallest_crop"] = _SMALLEST
        logger.info("images of %d pixels: crops cover at least %g of the area", crop.size, _SMALLEST)
    epochs = settings.pop("epochs", None)
    base = base if epochs is None else base.lasting(epochs)
    return dataclasses.replace(base, **(changed | settings)), crop.normalization


def _part(source: Source, share: float | None, ids: str | Path | None, seed: int) -> Source:
    """What is learnt from."""
    if ids is not None:
        return named(source, listed(Path(ids).expanduser()))
    return source if share is None else stratified(source, share, seed=seed)


def _tested(data: str, split: str | None, test: str | None, test_split: str | None) -> Source:
    found = open_source(test, test_split) if test is not None else usual_test(data, test_split, False)
    if found is None:
        raise ValueError(f"{data} has no test split that is known by name: give the images to test on, test=...")
    if test is None and test_split is not None and test_split == split:
        raise ValueError(f"{split!r} cannot be the split to train on and the one to test on")
    return found


def _projection(imported: Imported) -> nn.Module:
    """The first layer of the checkpoint's projector."""
    head = imported.heads.get("cls")
    projector = imported.projector if head is None else head.projector
    if projector is None:
        raise ValueError("this recipe begins at the projector's first layer, and the checkpoint holds no projector")
    return first_layer(projector)


def _described(imported: Imported) -> Any:
    """How the backbone is built again, where a run of one's own says so."""
    settings = imported.settings
    found: Any = settings.get("backbone")
    for value in (settings.get("method"),):
        if isinstance(value, Mapping) and isinstance(value.get("init_args"), Mapping):
            found = value["init_args"].get("backbone")
    return found if isinstance(found, Mapping) else None
