"""ExCB (Metaxas et al. 2024, https://arxiv.org/abs/2407.03168)."""

from torch import nn

from prototile.backbones import Readout
from prototile.checkpoints.foreign.dino import TEACHER
from prototile.checkpoints.foreign.layout import Layout, Network

_PARTS = {
    "backbone": "backbone.",
    "projector": "classifier.projector.mlp.",
    "prototypes": "classifier.centroid_layer.",
    "predictor": "predictor.",
}
_RULES = (
    (r"^backbone\.layer0\.0\.", "backbone.conv1."),  # older ResNets
    (r"^backbone\.layer0\.1\.", "backbone.bn1."),
    (r"^classifier\.predictor_activation\.", "predictor.0."),  # batch norm of projections comes first
    *((rf"^classifier\.predictor\.mlp\.{i}\.", f"predictor.{i + 1}.") for i in range(12)),
)

EXCB = Layout(
    name="ExCB",
    networks={
        "teacher": Network(paths=(("teacher",),), parts=_PARTS, rules=_RULES),
        "student": Network(paths=(("student",),), parts=_PARTS, rules=_RULES),
    },
    marks=(r"^backbone\.", r"^classifier\.centroid_layer\."),
    evaluated=TEACHER,
    activation={"": nn.ReLU, "vit": nn.GELU},
    temperature=0.1,
    readouts={"vit": {"linear": Readout(blocks=4)}, "resnet": {"linear": Readout()}},
    buffers=("criterion",),
)
