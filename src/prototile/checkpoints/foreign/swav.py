"""SwAV (Caron et al. 2020, https://arxiv.org/abs/2006.09882), and DeepCluster-v2, SeLa-v2 and E2MC in its form."""

from torch import nn

from prototile.backbones import Readout
from prototile.checkpoints.foreign.layout import TOP, Layout, Network


def _layout(name: str, marks: tuple[str, ...], said: str) -> Layout:
    return Layout(
        name=name,
        networks={
            "only": Network(
                paths=(TOP, ("state_dict",)),
                parts={"backbone": "", "projector": "projection_head.", "prototypes": "prototypes."},
            )
        },
        marks=(r"^layer1\.0\.conv1\.weight$", r"^projection_head\.", *marks),
        activation={"": nn.ReLU},
        temperature=0.1,
        readouts={"resnet": {"linear": Readout(), "linear-map": Readout(pool=6)}},
        said=said,
    )


SWAV = _layout(
    "SwAV", (r"^prototypes\.weight$",), "prototypes enter scores as they are stored, which is about unit length"
)
SEVERAL = _layout(
    "DeepCluster-v2",
    (r"^prototypes\.prototypes0\.weight$",),
    "SeLa-v2, and SwAV with several sets of prototypes, keep them in the same form",
)
