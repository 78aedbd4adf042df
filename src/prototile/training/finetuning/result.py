"""What fine-tuning gave: a small record, of one number and of what it takes to judge it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prototile.evaluation.records import Record, key_of, now, versions
from prototile.training.finetuning.scores import METRICS, Scores


@dataclass(frozen=True)
class FineTuned:
    """The scores of each seed after its last epoch, and how they came about.

    `value` is the mean over seeds of `metric` and `error` its standard error, NaN for one seed. `chosen` are the
    hyper-parameters that were chosen, `tried` what each learning rate scored where they were chosen, `select_on`:
    "validation" (images held out of those to train on), "test", which flatters, or "given", where there was no choice.
    `seconds` are those of the call that wrote it.
    """

    recipe: str
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[Scores, ...]  # of each seed
    chosen: Mapping[str, float]
    select_on: str
    tried: Mapping[str, float]
    settings: Mapping[str, Any] = field(repr=False)
    train_images: int
    classes: Mapping[str, int]  # in head, middle and tail
    seconds: float

    @property
    def values(self) -> tuple[float, ...]:
        """Of each seed."""
        return tuple(float(vars(found)[self.metric]) for found in self.scores)

    @property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        return standard_error(self.values)

    @property
    def n(self) -> int:
        """Test images."""
        return self.scores[0].images

    def as_dict(self) -> dict[str, Any]:
        """Plain values, None for what there is none of."""
        named: dict[str, Any] = {}
        for name in METRICS:
            each = [float(vars(found)[name]) for found in self.scores]
            named[name] = {"mean": float(np.mean(each)), "error": standard_error(each), "seeds": each}
        return _plain(
            {
                "protocol": "finetune",
                "recipe": self.recipe,
                "metric": self.metric,
                "value": self.value,
                "error": self.error,
                "n": self.n,
                "seeds": list(self.seeds),
                "values": list(self.values),
                "scores": named,
                "chosen": dict(self.chosen),
                "select_on": self.select_on,
                "tried": dict(self.tried),
                "train_images": self.train_images,
                "classes": dict(self.classes),
                "seconds": self.seconds,
                "settings": dict(self.settings),
            }
        )

    def as_record(self) -> Record:
        """As a line of `evaluations.jsonl`; of which images were right it does not tell."""
        about = self.settings
        decides = {name: value for name, value in about.items() if name != "packages"}
        hashes = about.get("hashes", {})
        told = self.as_dict()
        protocol = f"finetune, {self.recipe}"
        decides |= {"protocol": protocol, "seeds": self.seeds, "metric": self.metric, "select_on": self.select_on}
        return Record(
            protocol=protocol,
            metric=self.metric,
            value=self.value,
            images=self.n,
            seeds=self.seeds,
            values=self.values,
            selected_on="nothing" if self.select_on == "given" else self.select_on,
            chosen=(self.chosen,) * len(self.seeds),
            options={"recipe": self.recipe, **about.get("recipe", {})},
            details={name: told[name] for name in ("scores", "tried", "train_images", "classes")},
            seconds=self.seconds,
            checkpoint={
                "name": about.get("checkpoint"),
                "layout": about.get("layout"),
                "network": about.get("network"),
                "weights": hashes.get("weights"),
            },
            data={
                "name": str(about.get("data", "")).partition(":")[0],
                "train hash": hashes.get("train"),
                "test hash": hashes.get("test"),
                "crop": told["settings"].get("crop"),
                "train": self.train_images,
                "test": self.n,
            },
            versions=versions(),
            finished=now(),
            key=key_of(decides | {"classes": self.classes}),
        )

    def __str__(self) -> str:
        spread = "" if math.isnan(self.error) else f" ± {self.error:.2%} ({len(self.seeds)} seeds)"
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.chosen.items())
        said = f"{self.recipe}: {self.metric} {self.value:.2%}{spread} of {self.n:,} images; {chosen}"
        return said + (", chosen on the test images" if self.select_on == "test" else "")


def standard_error(values: Sequence[float]) -> float:
    r"""Of the mean, $s / \sqrt n$ with n - 1 in the variance; NaN for one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
