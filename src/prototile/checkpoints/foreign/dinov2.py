"""DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193), with and without registers."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.dino import TEACHER
from prototile.checkpoints.foreign.layout import TOP, Layout, Network

# Sharded training keeps blocks in chunks, each block under its number in the whole.
_CHUNKS = ((r"(^|\.)blocks\.\d+\.(\d+)\.", r"\1blocks.\2."),)
_LINEAR = {"linear": Readout(blocks=1, patches="behind"), "linear4": Readout(blocks=4, patches="behind")}
_READOUTS = {"vit": _LINEAR}

TRAINING = Layout(
    name="DINOv2",
    networks={
        name: Network(
            paths=((name,),),
            parts={
                "backbone": "backbone.",
                "projector": "dino_head.mlp.",
                "prototypes": "dino_head.last_layer.",
                "patch_projector": "ibot_head.mlp.",
                "patch_prototypes": "ibot_head.last_layer.",
            },
            rules=_CHUNKS,
        )
        for name in ("teacher", "student")
    },
    marks=(r"^backbone\.", r"^(dino_head\.last_layer|backbone\.blocks\.(\d+\.)+ls1)\."),
    evaluated=TEACHER,
    heads={"cls": ("projector", "prototypes"), "patches": ("patch_projector", "patch_prototypes")},
    temperature=0.1,
    readouts=_READOUTS,
)

BACKBONE = Layout(
    name="DINOv2",
    networks={"teacher": Network(paths=(TOP,), parts={"backbone": ""}, rules=_CHUNKS)},
    marks=(r"^cls_token$", r"^patch_embed\.proj\.weight$", r"\bls1\.gamma$", r"^norm\.weight$"),
    lacks=(r"^(backbone|head|fc)\.",),
    evaluated=("teacher", "released backbones are the teacher"),
    readouts=_READOUTS,
)
