"""DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294)."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.layout import TOP, Layout, Network

TEACHER = ("teacher", "the teacher is what the project evaluates")

_PARTS = {"backbone": "backbone.", "projector": "head.mlp.", "prototypes": "head.last_layer."}
_OLD = {"backbone": "", "projector": "head.mlp.", "prototypes": "head.last_layer."}
_READOUTS = {
    "vit": {"linear": Readout(blocks=4)},
    "large": {"linear": Readout(blocks=1, patches="interleaved")},
    "resnet": {"linear": Readout()},
}

DINO = Layout(
    name="DINO",
    networks={
        "teacher": Network(paths=(("teacher",),), parts=_PARTS),
        "student": Network(paths=(("student",),), parts=_PARTS),
    },
    marks=(r"^backbone\.", r"^head\.last_layer\."),
    lacks=(r"^head\.last_layer2\.", r"^head_dense\.", r"^backbone\.backbone\."),
    evaluated=TEACHER,
    temperature=0.1,
    readouts=_READOUTS,
    buffers=("dino_loss",),
)

OLD = Layout(
    name="DINO",
    networks={
        name: Network(
            paths=((name,),),
            parts=_OLD,
            rules=(
                (r"^(head|projection_head)\.(?!mlp|last_layer)(\d)", r"head.mlp.\2"),
                (r"^projection_head\.", "head."),
            ),
        )
        for name in ("teacher", "student")
    },
    marks=(r"^projection_head\.", r"^(blocks\.0|layer1\.0|patch_embed)\."),
    evaluated=TEACHER,
    temperature=0.1,
    readouts=_READOUTS,
    buffers=("dino_loss",),
    said="keys as before June 2021, without the backbone's prefix",
)

RESNET = Layout(
    name="DINO or VICReg",
    networks={"teacher": Network(paths=(TOP,), parts={"backbone": ""}, aside={r"^fc\.": "a classifier of classes"})},
    marks=(r"^layer1\.0\.conv1\.weight$", r"^conv1\.weight$"),
    lacks=(r"^(head|projection_head|prototypes|projector)\.",),
    evaluated=("teacher", "files of a backbone alone hold what is evaluated"),
    readouts=_READOUTS,
    said="a ResNet alone, which DINO, VICReg, torchvision and others keep in the same form",
)

BACKBONE = Layout(
    name="DINO",
    networks={"teacher": Network(paths=(TOP,), parts={"backbone": ""})},
    marks=(r"^blocks\.0\.attn\.qkv\.weight$", r"^cls_token$", r"^norm\.weight$"),
    lacks=(r"^(fc|head|projection_head|prototypes)\.", r"\bls1\.gamma$", r"^fc_norm\.", r"mask", r"^rel_pos_bias"),
    evaluated=("teacher", "DINO's files of a backbone alone hold the teacher"),
    readouts=_READOUTS,
    said="a ViT alone, which other projects keep in the same form: positions are resized as DINO does",
)
