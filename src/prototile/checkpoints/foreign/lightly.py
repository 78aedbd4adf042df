"""lightly (Susmelj et al. 2020, https://github.com/lightly-ai/lightly): Lightning files of its benchmarks and examples.

`backbone` and `projection_head` are the teacher where there is a student with a prefix.
"""

from collections.abc import Mapping

from torch import nn

from prototile.backbones.positions import Resize
from prototile.checkpoints.foreign.layout import Layout, Network, Rules
from prototile.checkpoints.foreign.solo_learn import LIGHTNING

_CONVOLUTIONS = ((0, "conv1"), (1, "bn1"), (4, "layer1"), (5, "layer2"), (6, "layer3"), (7, "layer4"))
_RULES: Rules = (
    # a ResNet as a list of its parts
    *((rf"^(\w*backbone)\.{i}\.", rf"\1.{name}.") for i, name in _CONVOLUTIONS),
    (r"^(\w*backbone)\.vit\.", r"\1."),
)
_BESIDE = {
    r"^online_classifier\.": "a classifier that was trained beside",
    r"^\w*criterion\.": "state of the loss",
    r"^(queues|queue|memory_bank)\b": "memory of past embeddings",
    r"^\w*backbone\.(head|fc)\.": "the backbone's classifier, which is not trained",
}


def _network(parts: dict[str, str], others: str) -> Network:
    aside = {**_BESIDE, others: "of the other network"} if others else _BESIDE
    return Network(paths=(("state_dict",),), parts=parts, rules=_RULES, aside=aside)


def _layout(
    networks: Mapping[str, Network],
    marks: tuple[str, ...],
    activation: type[nn.Module],
    lacks: tuple[str, ...] = (),
    resize: Resize = "timm",
    patches: bool = False,
) -> Layout:
    heads = {"cls": ("projector", "prototypes"), "patches": ("patch_projector", "patch_prototypes")}
    only = "only" in networks
    return Layout(
        name="lightly",
        networks=networks,
        marks=marks,
        lacks=lacks,
        evaluated=("only", "the file holds one") if only else ("teacher", "its evaluations take the teacher"),
        heads=heads if patches else {"cls": heads["cls"]},
        activation={"": activation},
        bias="unless normed",
        resize=resize,
        temperature=0.1,
        entries=LIGHTNING,
    )


def _dino(prefix: str) -> dict[str, str]:
    return {
        "backbone": f"{prefix}backbone.",
        "projector": f"{prefix}projection_head.layers.",
        "prototypes": f"{prefix}projection_head.last_layer.",
    }


DINO = _layout(
    {
        "teacher": _network(_dino(""), r"^student_"),
        "student": _network(_dino("student_"), r"^(backbone|projection_head)\."),
    },
    (r"^projection_head\.last_layer\.", r"^student_backbone\."),
    nn.GELU,
)

MSN = _layout(
    {
        "teacher": _network(
            {"backbone": "backbone.", "projector": "projection_head.layers.", "prototypes": "prototypes"}, r"^anchor_"
        ),
        "student": _network(
            {"backbone": "anchor_backbone.", "projector": "anchor_projection_head.layers.", "prototypes": "prototypes"},
            r"^(backbone|projection_head)\.",
        ),
    },
    (r"^anchor_backbone\.", r"^prototypes$"),
    nn.GELU,
)


def _ibot(network: str, cls: str, patches: str) -> dict[str, str]:
    return {
        "backbone": f"{network}_backbone.",
        "projector": f"{network}_{cls}.layers.",
        "prototypes": f"{network}_{cls}.last_layer.",
        "patch_projector": f"{network}_{patches}.layers.",
        "patch_prototypes": f"{network}_{patches}.last_layer.",
    }


IBOT = _layout(
    {
        network: Network(
            paths=(("state_dict",),),
            parts=_ibot(network, "cls_head", "patch_head"),
            rules=_RULES,
            aside={**_BESIDE, rf"^{other}_": "of the other network", rf"^{network}_head\.": "the same as its cls_head"},
        )
        for network, other in (("teacher", "student"), ("student", "teacher"))
    },
    (r"^teacher_backbone\.", r"^teacher_cls_head\.", r"^teacher_patch_head\."),
    nn.GELU,
    resize="msn",
    patches=True,
)

DINOV2 = _layout(
    {
        network: Network(
            paths=(("state_dict",),),
            parts=_ibot(network, "dino_head", "ibot_head"),
            rules=(*_RULES, (r"_(dino|ibot)_head\._(dino|ibot)_head\.", r"_\1_head.")),
            aside={**_BESIDE, rf"^{other}_": "of the other network"},
        )
        for network, other in (("teacher", "student"), ("student", "teacher"))
    },
    (r"^teacher_backbone\.", r"^teacher_dino_head\."),
    nn.GELU,
    resize="msn",
    patches=True,
)

OTHER = _layout(
    {
        "only": _network(
            {
                "backbone": "backbone.",
                "projector": "projection_head.layers.",
                "prototypes": "prototypes.",
                "predictor": "prediction_head.layers.",
            },
            "",
        )
    },
    (r"^backbone\.", r"^projection_head\.layers\."),
    nn.ReLU,
    lacks=(r"^(student|teacher|anchor)_backbone\.", r"^projection_head\.last_layer\."),
)
