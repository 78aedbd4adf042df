"""Which method a checkpoint is of: by whose it is, and where that does not tell, by its parts."""

import re

from prototile.checkpoints import Imported
from prototile.methods import METHODS

_OF_LAYOUTS = {
    "VICReg": "vicreg",
    "SimSiam": "simsiam",
    "SwAV": "swav",
    "DINO": "dino",
    "iBOT": "ibot",
    "DINOv2": "dinov2",
    "MSN": "msn",
    "ExCB": "excb",
}
_OF_KEYS = (  # of libraries of several methods: what its keys are called, as the evidence shows them
    ("lightly", r"anchor_backbone", "msn"),
    ("lightly", r"_dino_head", "dinov2"),
    ("lightly", r"_cls_head", "ibot"),
    ("lightly", r"projection_head\.last_layer", "dino"),
    ("solo-learn", r"head\.last_layer", "dino"),
    ("VISSL", r"projection_head", "swav"),
    ("VISSL", r"heads\.0\.mlp", "dino"),
)


def method_of(student: Imported, teacher: Imported | None) -> tuple[str, str | None]:
    """The method's name, and what was guessed, in words; an error where the file does not tell."""
    layout, heads = student.layout, student.heads
    if layout in ("MAE", "data2vec"):
        raise ValueError(f"{layout} has no projector to spread: say which method shall go on with its backbone")
    if layout in _OF_LAYOUTS:
        return _OF_LAYOUTS[layout], None
    if layout == "DeepCluster-v2":
        return "swav", "DeepCluster-v2 is continued by SwAV's loss, on the first of its sets of prototypes"
    if layout == "EsViT":
        regional = "patches" in heads and student.backbone is not None and student.backbone.patch is not None
        return ("esvit", None) if regional else ("dino", "EsViT without regions is DINO: so it is continued")
    told = method_told(student)
    if told is not None:
        return told, None
    if not heads and student.predictor is None:
        raise ValueError(
            f"the file ({layout}) does not tell its method: say which one shall go on, such as vicreg or swav"
        )
    if not heads:
        return "simsiam", "by its parts, it was taken for SimSiam"
    if "patches" in heads:
        name = "ibot"
    elif student.predictor is not None:
        name = "excb"
    else:
        name = "swav" if teacher is None else "dino"
    return name, f"by its parts, it was taken for {name}"


def method_told(imported: Imported) -> str | None:
    """What settings or names of keys say."""
    method = imported.settings.get("method")
    if isinstance(method, dict):  # of this package
        method = str(method.get("class_path", "")).rpartition(".")[2]
    if isinstance(method, str) and method in METHODS:
        return method
    evidence = "\n".join(imported.evidence)
    return next(
        (name for layout, keys, name in _OF_KEYS if layout == imported.layout and re.search(keys, evidence)), None
    )
