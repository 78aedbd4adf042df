"""Runs that are broken end with a reason."""

import math
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from prototile.training.checkpointing import read
from prototile.training.guard import Guard, Watch
from prototile.training.module import Diverged, Training
from prototile.training.run import fit
from training_cases import CASES, TinyMethod, loader

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Breaks(TinyMethod):
    """At one step something becomes no number."""

    def __init__(self, step: int, what: str):
        super().__init__()
        self.step, self.what = step, what

    def forward(self, views, progress):
        terms = super().forward(views, progress)
        if progress.step != self.step:
            return terms
        if self.what == "term":
            nan = torch.tensor(math.nan)
            return replace(terms, loss=terms.loss * nan, parts=terms.parts | {"spread": nan})
        if self.what == "gradient":
            return replace(terms, loss=terms.loss + (0 * self.student.token).sqrt().sum())  # 0 / 0
        with torch.no_grad():
            self.seen_mean.fill_(math.nan)
        return terms


def run(method, out, **options):
    optimization = CASES["tiny"][2]
    return fit(method, loader(), optimization=optimization, epochs=3, out=out, accelerator="cpu", **options)


@pytest.mark.parametrize(("step", "last"), [(7, 5), (9, 5), (14, 10)])
def test_a_term_that_is_no_number(tmp_path, step, last):
    """Also at the last step of an epoch, after which there would be a checkpoint, and of the run."""
    with pytest.raises(Diverged) as error:
        run(Breaks(step, "term"), tmp_path)
    said = str(error.value)
    assert f"step {step}: the loss is nan, its terms spread = nan, match = " in said
    assert "gradients are no numbers, the first is that of student." in said
    assert "try half of it, or clip=3" in said
    assert "go on from the last checkpoint" in said
    checkpoint = read(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == last
    assert all(x.isfinite().all() for x in checkpoint["state_dict"].values())
    assert not (tmp_path / "model").exists()
    assert "ended by Diverged: step" in (tmp_path / "train.log").read_text()


def test_a_gradient_that_is_no_number(tmp_path):
    with pytest.raises(Diverged, match=r"step 6: .* but its gradient is no number. 1 of 10 .* that of student.token"):
        run(Breaks(6, "gradient"), tmp_path)


def test_in_any_batch_of_an_accumulation_window(tmp_path):
    class First(TinyMethod):
        calls = 0

        def forward(self, views, progress):
            terms = super().forward(views, progress)
            self.calls += 1
            return replace(terms, loss=terms.loss * math.nan) if self.calls == 6 else terms  # of the window 6, 7

    with pytest.raises(Diverged, match="step 3: the loss is nan"):
        run(First(), tmp_path, accumulate=2)


def test_a_state_that_is_no_number_is_not_written(tmp_path):
    method = Breaks(3, "state")
    method.register_buffer("seen_mean", torch.zeros(2))
    with pytest.raises(Diverged, match="after step 5: seen_mean holds values that are no numbers, the first of 1"):
        run(method, tmp_path)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_images_are_suspected_where_they_are_broken(tmp_path):
    """A loss may refuse them: then its words are kept."""
    batches = loader()
    finished = batches._finished

    def broken(group):
        views = finished(group)
        views.images[0, 0, 0, 0, 0] = math.nan
        return views

    batches._finished = broken  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"step 0: the images of this batch hold .* \(the embeddings hold"):
        fit(TinyMethod(), batches, optimization=CASES["tiny"][2], epochs=1, out=tmp_path, accelerator="cpu")


def noted(watch: Watch, losses) -> int | None:
    """The number of losses after which it says that they have run away."""
    for i, loss in enumerate(losses):
        if watch.note(float(loss)):
            return i
    return None


def usual(count: int = 1000) -> np.ndarray:
    """A loss that falls from ln K, with noise and jumps."""
    random = np.random.default_rng(0)
    falling = 11 - 4 * np.arange(count) / count + 0.3 * random.standard_normal(count)
    falling[::97] += 20  # alone, they are no reason
    return falling


def test_a_usual_loss_does_not_run_away():
    assert noted(Watch(), usual()) is None
    assert noted(Watch(), -usual()) is None  # MMCR's is negative
    assert noted(Watch(), 0.01 * usual()) is None


def test_a_loss_that_stays_far_above_has_run_away():
    assert noted(Watch(), [*usual(), *([1e4] * 200)]) == 1099
    assert noted(Watch(), [*-usual(), *([1e4] * 200)]) == 1099
    assert noted(Watch(), [*usual(), *([1e4] * 99), 7.0, *([1e4] * 99)]) is None
    assert noted(Watch(), [1e4] * 50) is None  # a run may begin high


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|eval mode at the start|LeafSpec).*")
def test_a_run_that_diverges_ends():
    class Away(TinyMethod):
        def forward(self, views, progress):
            terms = super().forward(views, progress)
            return replace(terms, loss=terms.loss + (1e6 if progress.step >= 8 else 0))

    guard = Guard(Watch(window=10, least=5, patience=3))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, callbacks=[guard], **QUIET)
    with pytest.raises(Diverged, match=r"step 10: the loss is 1e\+06 and has been far above .* for 3 steps"):
        trainer.fit(Training(Away(), CASES["tiny"][2], loader()))
