"""Training in a plain PyTorch loop: DINO on handwriting, with another prior, another balancer and KoLeo-proto.

python examples/plain_loop.py --steps 200
"""

import argparse

import torch

import prototile as pt
from prototile.evaluation import extract, knn
from prototile.schedules import Constant, Cosine, Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = pt.data.open_source("handwriting"), pt.data.open_source("handwriting", "test")
    method = pt.methods.dino(
        pt.backbones.vit("tiny", patch=8, image_size=32, dims=64, depth=2, heads=4, init="xavier"),
        num_prototypes=128,
        hidden=256,
        bottleneck=64,
        head_batch_norm=True,
        prior=pt.PowerLaw(0.25),  # how images should spread over prototypes
        balancer=pt.ProbabilityCentering,  # who sees to it
        add_ons=[pt.methods.koleo_proto(0.1)],  # no two prototypes shall be alike
        teacher_temperature=Constant(0.04),
        momentum=Cosine(0.98, 1.0),
    )
    views = pt.views.small(pt.views.presets.dino(local_views=2), patch=8, smallest=0.5)
    loader = pt.data.Loader(train, views, options.batch, workers=1)
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=2e-3, weight_decay=0.04)

    def report(when: str) -> None:
        known, asked = (extract(method.backbone, source, size=32) for source in (train, test))
        print(f"{when}: {knn(known.features, known.labels, asked.features, asked.labels)}")

    report("untrained")
    batches = (batch for _ in range(options.steps) for batch in loader)  # epoch after epoch
    for step in range(options.steps):
        progress = Progress(step, options.steps)
        terms = method(next(batches).views, progress)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        method.after_step(progress)
    print(f"step {options.steps}: loss {float(terms.loss.detach()):.3f}")
    report("trained")


if __name__ == "__main__":  # a loader's workers are processes
    main()
