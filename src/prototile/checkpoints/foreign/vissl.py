"""VISSL's SwAV and DINO (Goyal et al. 2021, https://github.com/facebookresearch/vissl)."""

from torch import nn

from prototile.checkpoints.foreign.layout import Layout, Network, Rules

_PATHS = (("classy_state_dict", "base_model", "model"), ("model",))
_RULES: Rules = ((r"^trunk\.(_feature_blocks|base_model|base_model\._feature_blocks)\.", "trunk."),)
_ENTRIES = {"classy_state_dict": "state of training"}


def _layout(parts: dict[str, str], marks: tuple[str, ...], activation: type[nn.Module], said: str) -> Layout:
    return Layout(
        name="VISSL",
        networks={
            "student": Network(
                paths=_PATHS, parts={"backbone": "trunk.", **parts}, rules=_RULES, joined=("trunk", "heads")
            )
        },
        marks=(r"^trunk\.", *marks),
        evaluated=("student", "VISSL evaluates the base model; DINO's teacher lies in its loss"),
        activation={"": activation},
        temperature=0.1,
        entries=_ENTRIES,
        said=said,
    )


SWAV = _layout(
    {"projector": "heads.0.projection_head.", "prototypes": "heads.0."},
    (r"^heads\.0\.projection_head\.", r"^heads\.0\.prototypes0\."),
    nn.ReLU,
    "SwAV",
)
DINO = _layout(
    {"projector": "heads.0.mlp.", "prototypes": "heads.0."},
    (r"^heads\.0\.mlp\.", r"^heads\.0\.prototypes0\."),
    nn.GELU,
    "DINO",
)
