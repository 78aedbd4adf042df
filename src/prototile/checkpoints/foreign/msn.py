"""MSN (Assran et al. 2022, https://arxiv.org/abs/2204.07141)."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.layout import Layout, Network, Rules

_NORMED: Rules = tuple(
    (rf"^fc\.{name}\.", f"fc.{number}.")
    for name, number in (("fc1", 0), ("bn1", 1), ("fc2", 3), ("bn2", 4), ("fc3", 6))
)
_PLAIN: Rules = tuple((rf"^fc\.fc{i}\.", f"fc.{2 * i - 2}.") for i in (1, 2, 3))


def _layout(rules: Rules, marks: tuple[str, ...], lacks: tuple[str, ...]) -> Layout:
    return Layout(
        name="MSN",
        networks={
            name: Network(
                paths=((path,),),
                parts={"backbone": "", "projector": "fc.", "prototypes": "prototypes"},
                rules=rules,
                beside=("prototypes",),
            )
            for name, path in (("teacher", "target_encoder"), ("student", "encoder"))
        },
        marks=(r"^patch_embed\.proj\.weight$", *marks),
        lacks=lacks,
        evaluated=("teacher", "the target encoder is what the project evaluates"),
        score="cosine",
        resize="msn",
        temperature=0.1,
        readouts={
            kind: {
                "lowshot": Readout(blocks=1, normed=False),
                "linear": Readout(blocks=1, normed=False),
                "linear4": Readout(blocks=4, normed=False),
            }
            for kind in ("vit",)
        },
        entries={"opt": "state of the optimiser", "classifier": "a classifier of classes"},
    )


MSN = _layout(_NORMED, (r"^fc\.bn1\.",), ())
PLAIN = _layout(_PLAIN, (), (r"^fc\.bn1\.",))
