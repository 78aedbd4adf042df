"""solo-learn (da Costa et al. 2022, https://jmlr.org/papers/v23/21-1155.html): Lightning files of its methods."""

from torch import nn

from prototile.checkpoints.foreign.heads import Bias
from prototile.checkpoints.foreign.layout import Layout, Network, Rules

LIGHTNING = {  # what Lightning keeps beside the weights
    "callbacks": "state of callbacks",
    "hparams_name": "see `settings`",
    "hyper_parameters": "settings, see `settings`",
    "loops": "where training stood",
    "lr_schedulers": "state of the schedule",
    "optimizer_states": "state of the optimiser",
    "native_amp_scaling_state": "state of mixed precision",
    "MixedPrecision": "state of mixed precision",
}

_RULES: Rules = ((r"^(momentum_)?encoder\.", r"\1backbone."),)  # older releases
_BESIDE = {
    r"^(momentum_)?classifier\.": "a classifier that was trained beside",
    r"^dino_loss_func\.": "DINO's centre",
    r"^(queue|local_memory|assignments)": "memory of past embeddings",
}


def _layout(
    parts: dict[str, str], marks: tuple[str, ...], activation: type[nn.Module], bias: Bias, lacks: tuple[str, ...] = ()
) -> Layout:
    teacher = {part: f"momentum_{prefix}" for part, prefix in parts.items() if part != "predictor"}
    if parts["prototypes"] == "prototypes.":
        teacher["prototypes"] = "prototypes."
    mine = r"^(?!momentum_|prototypes\.|classifier\.|dino_loss_func\.)"
    return Layout(
        name="solo-learn",
        networks={
            "student": Network(
                paths=(("state_dict",),),
                parts=parts,
                rules=_RULES,
                aside={**_BESIDE, r"^momentum_": "the teacher's, load it with network='teacher'"},
            ),
            "teacher": Network(
                paths=(("state_dict",),),
                parts=teacher,
                rules=_RULES,
                aside={**_BESIDE, mine: "the student's, load it with network='student'"},
            ),
        },
        marks=(r"^(backbone|encoder)\.", *marks),
        lacks=lacks,
        evaluated=("student", "solo-learn evaluates `backbone`, which is the student"),
        activation={"": activation},
        bias=bias,
        resize="timm",
        stem="padded",
        temperature=0.1,
        entries=LIGHTNING,
    )


DINO = _layout(
    {"backbone": "backbone.", "projector": "head.mlp.", "prototypes": "head.last_layer."},
    (r"^head\.last_layer\.",),
    nn.GELU,
    "all",
)
_PARTS = {"backbone": "backbone.", "projector": "projector.", "prototypes": "prototypes.", "predictor": "predictor."}
CLUSTERS = _layout(_PARTS, (r"^projector\.\d", r"^prototypes\."), nn.ReLU, "all", (r"projection_head\.",))
OTHER = _layout(
    _PARTS,
    (r"^(projector\.\d|classifier\.(weight|bias)$)",),
    nn.ReLU,
    "any",
    (r"projection_head\.", r"^prototypes\."),
)
