"""Training with a Lightning Trainer of one's own: VICReg on drawn digits, with one's own callback.

python examples/lightning_use.py --epochs 1

`prototile.training.fit` does the same with checkpoints, a guard and everything that is watched.
"""

import argparse

from lightning.pytorch import Callback, Trainer

import prototile as pt
from prototile.data import Subset
from prototile.schedules import Constant, Cosine
from prototile.training import Optimization, Training


class Losses(Callback):
    """What a callback finds: the module's `terms` and `progress` of the last step."""

    def on_train_epoch_end(self, trainer: Trainer, training: Training) -> None:
        parts = ", ".join(f"{name} {float(value):.3f}" for name, value in training.terms.parts.items())
        print(f"epoch {trainer.current_epoch + 1}: {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2048)
    options = parser.parse_args()

    backbone = pt.backbones.vit("tiny", patch=4, image_size=24, dims=64, depth=4, heads=4)
    method = pt.methods.vicreg(backbone, hidden=256, add_ons=[pt.methods.koleo_data(0.01)])
    views = pt.views.small(pt.views.preset("vicreg"), size=24)
    source = Subset(pt.data.open_source("digits"), range(options.images))
    optimization = Optimization(lr=Cosine(1e-3, 1e-5, warmup_epochs=0.5), weight_decay=Constant(0.01))

    training = Training(method, optimization, pt.data.Loader(source, views, 128, workers=1))
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="auto",
        devices=1,
        callbacks=[Losses()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(training)


if __name__ == "__main__":  # a loader's workers are processes
    main()
