"""Training in a plain PyTorch loop: DINO on drawn digits, with a matched prior and KoLeo-proto, in a minute or two.

python examples/plain_loop.py --steps 200
"""

import argparse

import torch

import prototile as pt
from prototile.data import Subset
from prototile.evaluation import extract, knn
from prototile.schedules import Constant, Cosine, Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()

    torch.manual_seed(0)
    train, test = pt.data.open_source("digits"), pt.data.open_source("digits", "test")
    probes = Subset(train, range(2000)), Subset(test, range(1000))
    backbone = pt.backbones.vit("tiny", patch=4, image_size=24, dims=64, depth=4, heads=4)
    method = pt.methods.dino(
        backbone,
        num_prototypes=512,
        hidden=512,
        bottleneck=64,
        prior=pt.PowerLaw(0.25),  # how images should spread over prototypes
        balancer=pt.Sinkhorn,  # who sees to it
        add_ons=[pt.methods.koleo_proto(0.1)],  # no two prototypes shall be alike
        teacher_temperature=Constant(0.05),
        momentum=Cosine(0.99, 1.0),
    )
    views = pt.views.small(pt.views.presets.dino(local_views=2), size=24, local_size=16)
    loader = pt.data.Loader(train, views, options.batch, workers=1)
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-3, weight_decay=0.04)

    def report(when: str) -> None:
        known, asked = (extract(method.backbone, source, size=24) for source in probes)
        print(f"{when}: {knn(known.features, known.labels, asked.features, asked.labels)}")

    report("untrained")
    step = 0
    while step < options.steps:
        for batch in loader:  # an epoch
            progress = Progress(step, options.steps)
            terms = method(batch.views, progress)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            method.after_step(progress)
            step += 1
            if step == options.steps:
                break
        used = int((terms.clusters["cls"].targets.counts() > 0).sum())
        print(f"step {step}: loss {float(terms.loss.detach()):.3f}, {used} prototypes used in this batch")
    report("trained")


if __name__ == "__main__":  # a loader's workers are processes
    main()
