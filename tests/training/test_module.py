"""The one LightningModule: steps, moving averages, schedules, random numbers, precision."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from prototile.data import Arrays, Loader
from prototile.methods import Supervised, Terms
from prototile.schedules import Constant, Cosine, Progress
from prototile.training.module import Training, difference
from prototile.training.optimization import Optimization, Special
from prototile.views import preset, small
from training_cases import BATCH, IMAGES, SIDE, TinyBackbone, TinyMethod, dino_vit, images, loader

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|eval mode at the start|LeafSpec).*")
OPTIMIZATION = Optimization(lr=Cosine(0.1, 0.0, warmup_epochs=1), weight_decay=Cosine(0.04, 0.4), lr_scaling="none")


class Listen(pl.Callback):
    """Notes what an optimiser step is given."""

    def __init__(self):
        self.values: list[tuple[float, float]] = []
        self.batches: list[list[int]] = []
        self.drawn: list[Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch.indices.tolist())

    def on_after_backward(self, trainer, pl_module):
        self.drawn.append(torch.rand(1))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))


class Draw(pl.Callback):
    """Takes random numbers, as callbacks may."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.rand(batch_idx + 1)


def trainer(epochs: int = 2, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "enable_model_summary": False, "max_epochs": epochs} | quiet | options
    return pl.Trainer(use_distributed_sampler=False, **options)


def trained(method: TinyMethod, optimization: Optimization = OPTIMIZATION, epochs: int = 2, **options) -> Training:
    module = Training(method, optimization, loader())
    trainer(epochs, **options).fit(module)
    return module


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 5), (2, 3), (3, 2), (7, 1)])
def test_moving_averages_and_schedules_count_optimiser_steps(accumulate, steps):
    """Of five batches an epoch, whose last window may be incomplete."""
    method = TinyMethod()
    module = trained(method, accumulate_grad_batches=accumulate)
    assert method.updates == [Progress(step, 2 * steps, 2) for step in range(2 * steps)]
    assert module.steps == module.trainer.global_step == 2 * steps
    assert method.seen == 2 * 5 * BATCH  # every batch was seen once


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learning_rate_and_weight_decay_of_every_step(accumulate):
    listen = Listen()
    module = trained(TinyMethod(), callbacks=[listen], accumulate_grad_batches=accumulate)
    moments = [Progress(step, module.steps, 2) for step in range(module.steps)]
    expected = [(OPTIMIZATION.lr(p), OPTIMIZATION.weight_decay(p)) for p in moments]
    assert listen.values == expected


def without_chance() -> TinyMethod:
    torch.manual_seed(0)
    method = TinyMethod()
    for network in (method.student, method.teacher):
        network.backbone.block[2] = nn.Identity()
    return method


def test_equals_a_plain_loop():
    """Forward, backward, clipping, frozen prototypes, AdamW, moving average: to the bit."""
    roles = {"prototypes": Special(freeze_epochs=1)}
    optimization = Optimization(lr=Constant(0.01), weight_decay=Constant(0.1), clip=0.1, roles=roles)
    method = without_chance()
    trained(method, optimization)
    plain = without_chance()
    decaying = [p for n, p in plain.student.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
    others = [p for n, p in plain.student.named_parameters() if p.ndim <= 1 or n.endswith("bias")]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01 * BATCH / 256)
    batches, step = loader(), 0
    for epoch in range(2):
        for batch in batches:
            progress = Progress(step, 10, 2)
            optimizer.zero_grad()
            plain(batch.views, progress).loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.student.parameters(), 0.1)
            if epoch == 0:
                plain.student.prototypes.vectors.grad = None
            optimizer.step()
            plain.after_step(progress)
            step += 1
    assert step == 10
    for (name, x), y in zip(method.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_a_run_begins_with_the_first_batch_after_preparing():
    """Preparing takes seven batches, more than an epoch has; the run begins where it would have without."""
    listen, method = Listen(), TinyMethod()
    trained(method, epochs=1, callbacks=[listen])
    assert method.prepared == 7 * BATCH
    assert listen.batches == [batch.indices.tolist() for batch in loader()]


def test_random_numbers_follow_from_seed_and_place():
    """Whatever callbacks draw in between; each batch has others."""
    first, again, other = Listen(), Listen(), Listen()
    trained(TinyMethod(), callbacks=[first])
    trained(TinyMethod(), callbacks=[Draw(), again])
    trainer(callbacks=[other]).fit(Training(TinyMethod(), OPTIMIZATION, loader(), seed=1))
    assert first.drawn == again.drawn
    assert first.drawn != other.drawn
    assert len({float(x) for x in first.drawn}) == 10


def test_a_step_that_float16_leaves_out_moves_nothing():
    """The schedule counts it; the moving average and the optimiser do not."""

    class Overflows(TinyMethod):
        def forward(self, views, progress):
            terms = super().forward(views, progress)
            infinite = progress.step in (2, 5)
            return terms if not infinite else type(terms)(terms.loss * torch.inf, terms.parts, terms.embeddings)

    method = Overflows()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    module = trained(method, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert [progress.step for progress in method.updates] == [0, 1, 3, 4, 6, 7, 8, 9]
    assert module.skipped_steps == 2
    assert module.trainer.global_step == 10
    assert all(p.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_weights_stay_float32(precision):
    method = dino_vit()
    module = Training(method, OPTIMIZATION, loader("dino"))
    trainer(1, precision=precision).fit(module)
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert module.terms is not None
    assert module.terms.loss.isfinite()
    state = module.trainer.optimizers[0].state_dict()["state"]
    assert {x["exp_avg"].dtype for x in state.values()} == {torch.float32}


def test_a_function_makes_the_loader():
    made = []

    def make() -> Loader:
        made.append(loader())
        return made[-1]

    module = Training(TinyMethod(), OPTIMIZATION, make)
    trainer(1).fit(module)
    assert made == [module.loader]


def test_a_run_needs_an_end():
    with pytest.raises(ValueError, match="schedules need an end: give the Trainer `max_epochs`"):
        trainer(-1).fit(Training(TinyMethod(), OPTIMIZATION, loader()))


def test_what_changed_between_settings():
    before = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    after = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "f": True}
    assert list(difference(before, before)) == []
    assert list(difference(before, after)) == ["b.c was [1, 2] and is [1, 3]", "f was None and is True"]


def test_both_backbones_are_compiled():
    """What a compiled run gives is in `test_run.py`."""
    for compile in (True, False):
        method = dino_vit()
        Training(method, OPTIMIZATION, loader("dino"), compile=compile)
        assert [network._compiled_call_impl is not None for network in method.backbones] == [compile, compile]


class Labelled(Supervised):
    """Notes the labels that it is given."""

    def __init__(self):
        super().__init__()
        self.net = TinyBackbone()
        self.labels: list[list[int]] = []

    def forward(self, views, progress, labels):
        self.labels.append(labels.tolist())
        pooled = self.net(views[0].images[0]).pooled
        return Terms(pooled.square().mean(), {}, pooled.detach())

    def after_step(self, progress):
        pass

    def prepare(self, batches):
        pass

    def check(self, augmentation):
        pass

    @property
    def backbones(self):
        return (self.net,)

    @property
    def roles(self):
        return {}


def test_methods_that_learn_from_labels_are_given_them():
    method, data = Labelled(), images()
    source = Arrays(np.stack([data.image(i).permute(1, 2, 0).numpy() for i in range(len(data))]), np.arange(len(data)))
    listen = Listen()
    batches = Loader(source, small(preset("vicreg"), size=SIDE), BATCH, workers=0)
    trainer(1, callbacks=[listen]).fit(Training(method, OPTIMIZATION, batches))
    assert method.labels == listen.batches
    assert sorted(label for batch in method.labels for label in batch) == list(range(IMAGES))
