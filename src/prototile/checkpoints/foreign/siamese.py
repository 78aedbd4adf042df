"""VICReg (Bardes et al. 2022) and SimSiam (Chen & He 2021), and E2MC's networks in their forms."""

from torch import nn

from prototile.backbones import Readout
from prototile.checkpoints.foreign.layout import Layout, Network

VICREG = Layout(
    name="VICReg",
    networks={
        "only": Network(paths=(("model",),), parts={"backbone": "backbone.", "projector": "projector."}),
    },
    marks=(r"^backbone\.layer1\.0\.conv1\.weight$", r"^projector\.0\.weight$"),
    activation={"": nn.ReLU},
    bias="not last",
    readouts={"resnet": {"linear": Readout()}},
)

SIMSIAM = Layout(
    name="SimSiam",
    networks={
        "only": Network(
            paths=(("state_dict",),),
            parts={"backbone": "encoder.", "projector": "encoder.fc.", "predictor": "predictor."},
        ),
    },
    marks=(r"^encoder\.layer1\.0\.conv1\.weight$", r"^encoder\.fc\.0\.weight$", r"^predictor\.0\.weight$"),
    activation={"": nn.ReLU},
    bias="unless affine",
    readouts={"resnet": {"linear": Readout()}},
)

CLASSIFIER = Layout(
    name="SimSiam",
    networks={
        "only": Network(
            paths=(("state_dict",),),
            parts={"backbone": ""},
            aside={r"^fc\.(weight|bias)$": "a classifier of classes"},
        )
    },
    marks=(r"^conv1\.weight$", r"^layer1\.0\.conv1\.weight$", r"^fc\.weight$"),
    lacks=(r"^(projection_head|prototypes)\.",),
    readouts={"resnet": {"linear": Readout()}},
    entries={"best_acc1": "accuracy of a classifier"},
    said="a ResNet with a classifier, as SimSiam's linear evaluation leaves it",
)
