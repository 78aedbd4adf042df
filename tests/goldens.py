"""Cases of other projects' checkpoints: their weights from names and shapes, and the files in which they would lie."""

import json
import math
import re
import zlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TOKENS = {
    "absolute_pos_embed",
    "cls_token",
    "decoder_pos_embed",
    "mask_token",
    "masked_embed",
    "pos_embed",
    "register_tokens",
    "relative_position_bias_table",
}
FOLDER = Path(__file__).parent / "reference" / "checkpoints"

# Where a project's file keeps which network, and the prefix of its keys there; `TOP` is the file itself.
TOP = ""
PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "dino": {"teacher": ("teacher", ""), "student": ("student", "module."), "backbone": (TOP, "")},
    "ibot": {"teacher": ("teacher", ""), "student": ("student", "module."), "backbone": ("state_dict", "")},
    "esvit": {"teacher": ("teacher", ""), "student": ("student", "module."), "backbone": ("teacher", "")},
    "dinov2": {"teacher": ("teacher", ""), "model": (TOP, ""), "backbone": (TOP, "")},
    "msn": {
        "target_encoder": ("target_encoder", "module."),
        "encoder": ("encoder", "module."),
        "prototypes": (TOP, ""),
    },
    "excb": {"teacher": ("teacher", ""), "student": ("student", "")},
    "swav": {"model": (TOP, "module.")},
    "deepclusterv2": {"model": (TOP, "module.")},
    "vicreg": {"model": ("model", "module.")},
    "simsiam": {"model": ("state_dict", "module.")},
    "mae": {"model": ("model", "")},
    "data2vec_vision": {"model": ("model", ""), "model_ema": ("model_ema", "")},
    "solo-learn": {"model": ("state_dict", "")},
    "lightly": {"model": ("state_dict", "")},
}


@dataclass(frozen=True)
class Golden:
    """A case: its description, and what the official networks gave."""

    name: str
    about: Mapping[str, Any]
    outputs: Mapping[str, Tensor]

    @property
    def project(self) -> str:
        return self.about["project"]


def golden(path: Path) -> Golden:
    return Golden(path.stem, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


def is_golden(path: Path) -> bool:
    return "state_dicts" in json.loads(path.read_text())


def weight(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, ones: bool = False) -> Tensor:
    """Noise z that the name seeds: half of it for tables of tokens, 1 + z / 10 for scales, z / 10 for biases, and else
    z over the square root of the number of inputs; `ones` are the lengths of weight norm.
    """
    leaf = re.split(r"[.:]", name)[-1]  # "student:" may stand before it
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=dtype)
    if not dtype.is_floating_point:
        return index_table(name, shape)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if leaf == "weight_g":
        return torch.ones(shape) if ones else 1 + z / 10
    if leaf in TOKENS:
        return z / 2
    if leaf in ("bias", "running_mean", "q_bias", "v_bias"):
        return z * 0.1
    if leaf == "running_var" or z.ndim <= 1:
        return 1 + 0.1 * z
    return z / math.sqrt(z[0].numel())


def index_table(name: str, shape: tuple[int, ...]) -> Tensor:
    """Which row of a table of relative positions belongs to which pair of tokens; BEiT's has a class token in front."""
    extra = name.startswith("rel_pos_bias.") or "rel_pos_bias" in name
    side = math.isqrt(shape[0] - extra)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None] + side - 1
    pairs = apart[..., 0] * (2 * side - 1) + apart[..., 1]
    if not extra:
        return pairs
    whole = torch.empty(shape, dtype=torch.int64)
    rows = (2 * side - 1) ** 2
    whole[0], whole[:, 0], whole[0, 0], whole[1:, 1:] = rows, rows + 1, rows + 2, pairs
    return whole


def state(about: Mapping[str, Any], network: str) -> dict[str, Tensor]:
    """The state dict of one of the networks, under its own names."""
    rule = about["weights"]
    salt = rule.get("salts", {}).get(network, "") + rule.get("seed_prefix", "")
    ones = str(rule.get("weight_g", "")).startswith("ones")
    found = {
        name: weight(salt + name, tuple(shape), getattr(torch, dtype), ones=ones)
        for name, (shape, dtype) in about["state_dicts"][network].items()
    }
    for name, source in rule.get("aliases", {}).items():
        if name in found:
            found[name] = found[source].clone()
    for name, factor in rule.get("scale", {}).items():
        found[name] = found[name] * factor
    return found


def contents(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the project's file of these networks would hold."""
    project, whole = about["project"], dict[str, Any]()
    convolutional = str(about.get("arch", "")).startswith("resnet")
    for network in about["state_dicts"]:
        place, prefix = PLACES[project][network]
        if network == "teacher" and convolutional and project in ("dino", "ibot", "esvit"):
            prefix = "module."  # batch norm is wrapped on several GPUs, in the teacher too
        tensors = {prefix + name: x for name, x in state(about, network).items()}
        whole |= tensors if place == TOP else {place: tensors}
    return whole | beside(project, whole)


def beside(project: str, whole: Mapping[str, Any]) -> dict[str, Any]:
    """What else lies in a project's file."""
    if "teacher" in whole and project in ("dino", "ibot", "esvit"):
        loss = "ibot_loss" if project == "ibot" else "dino_loss"
        centers = {"center": torch.zeros(1, 8)} | ({"center2": torch.zeros(1, 1, 8)} if project == "ibot" else {})
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        return {loss: centers, "epoch": 100, "args": Namespace(out_dim=8, lr=0.1), "optimizer": optimizer}
    if project == "excb":
        criterion = {"center": torch.ones(1, 8), "cluster_count": torch.zeros(8)}
        return {"epoch": 100, "train_step": 1, "ks": 0, "args": Namespace(lr=0.1), "criterion": criterion}
    if project in ("mae", "data2vec_vision"):
        return {"epoch": 799, "args": Namespace(model="x"), "scaler": {"scale": 1.0}}
    if project in ("vicreg", "simsiam"):
        return {"epoch": 100} | ({"arch": "resnet50"} if project == "simsiam" else {})
    if project in ("solo-learn", "lightly"):
        return {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.0", "hyper_parameters": {"lr": 0.1}}
    if project == "msn":
        return {"epoch": 100, "loss": 1.0, "batch_size": 64, "world_size": 64, "lr": 0.1, "temperature": 0.1}
    return {}


def inputs(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
