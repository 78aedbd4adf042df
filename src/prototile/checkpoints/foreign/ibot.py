"""iBOT (Zhou et al. 2022, https://arxiv.org/abs/2111.07832)."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.dino import TEACHER
from prototile.checkpoints.foreign.layout import Layout, Network

_PARTS = {
    "backbone": "backbone.",
    "projector": "head.mlp.",
    "prototypes": "head.last_layer.",
    "patch_prototypes": "head.last_layer2.",
}
_READOUTS = {
    "vit": {"linear": Readout(blocks=4)},
    "large": {"linear": Readout(blocks=1, patches="behind")},
    "swin": {"linear": Readout(blocks=4)},
}

IBOT = Layout(
    name="iBOT",
    networks={
        "teacher": Network(paths=(("teacher",),), parts=_PARTS),
        "student": Network(paths=(("student",),), parts=_PARTS),
    },
    marks=(r"^backbone\.", r"^head\.last_layer\.", r"^head\.last_layer2\."),
    evaluated=TEACHER,
    heads={"cls": ("projector", "prototypes"), "patches": ("projector", "patch_prototypes")},
    temperature=0.1,
    readouts=_READOUTS,
    buffers=("ibot_loss",),
)

BACKBONE = Layout(
    name="iBOT",
    networks={"only": Network(paths=(("state_dict",),), parts={"backbone": ""})},
    marks=(r"^patch_embed\.proj\.weight$", r"^(layers\.0\.)?blocks\.0\.attn\.qkv\.weight$", r"^norm\.weight$"),
    lacks=(r"^(fc|head|projection_head|prototypes)\.", r"\bls1\.gamma$"),
    evaluated=("only", "the file holds one: the teacher, for checkpoint_student.pth the student"),
    readouts=_READOUTS,
)
