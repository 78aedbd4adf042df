"""EsViT (Li et al. 2022, https://arxiv.org/abs/2106.09785): a view head and a region head."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.dino import TEACHER
from prototile.checkpoints.foreign.layout import Layout, Network

_PARTS = {
    "backbone": "",
    "projector": "head.mlp.",
    "prototypes": "head.last_layer.",
    "patch_projector": "head_dense.mlp.",
    "patch_prototypes": "head_dense.last_layer.",
}
# A ResNet is wrapped twice, where a Swin transformer is not at all.
_RULES = ((r"^backbone\.(backbone\.)?", ""),)

ESVIT = Layout(
    name="EsViT",
    networks={
        "teacher": Network(paths=(("teacher",),), parts=_PARTS, rules=_RULES),
        "student": Network(paths=(("student",),), parts=_PARTS, rules=_RULES),
    },
    marks=(r"^head\.last_layer\.", r"^(layers\.0|backbone\.backbone|stage\d+|layer\d+|head_dense)\."),
    lacks=(r"^head\.last_layer2\.",),
    evaluated=TEACHER,
    heads={"cls": ("projector", "prototypes"), "patches": ("patch_projector", "patch_prototypes")},
    temperature=0.1,
    readouts={"swin": {"linear": Readout(blocks=4)}, "resnet": {"linear": Readout()}},
    buffers=("dino_loss",),
)
