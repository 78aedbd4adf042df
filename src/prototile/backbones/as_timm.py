"""A backbone as timm knows it: lines of Python that build timm's network, and the weights that it loads strictly.

Other libraries read such weights without this one. What timm does differently is said in comments of those lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from timm.layers.mlp import GluMlp
from timm.models.beit import Beit
from timm.models.beit import Block as BEiTBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from prototile.backbones.backbone import Backbone
from prototile.backbones.beit import BEiT
from prototile.backbones.other import Pooled
from prototile.backbones.resnet import ResNet
from prototile.backbones.swin import Swin
from prototile.backbones.vit import Block, ViT

_LAYER_SCALE = 1e-5  # only whether there is one matters: weights are loaded


@dataclass(frozen=True)
class Timm:
    """`code` makes `model`, whose `forward` gives pooled features once it has loaded `weights`."""

    code: str
    weights: Mapping[str, Tensor]


def as_timm(backbone: Backbone) -> Timm:
    """The backbone in timm's terms; an error where timm cannot build it."""
    match backbone:
        case ViT():
            code = _vit(backbone)
            weights = _norm_renamed(backbone.vit.state_dict(), backbone.pool == "mean")
        case BEiT():
            code = _beit(backbone)
            weights = _beit_weights(backbone)
        case Swin():
            code = _swin(backbone)
            weights = backbone.swin.state_dict()
        case ResNet():
            code = _resnet(backbone)
            weights = backbone.resnet.state_dict()
        case Pooled():
            network: Any = backbone.network
            code = _call(network.pretrained_cfg["architecture"], in_chans=_first(network).in_channels)
            weights = network.state_dict()
        case _:
            raise ValueError(
                f"timm has no {type(backbone).__name__}: export its weights under the package's own names instead"
            )
    return Timm(code, weights)


def _call(name: str, **options: Any) -> str:
    given = {"num_classes": 0} | options
    arguments = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
    return f"model = timm.create_model({name!r}{arguments})"


def _vit(backbone: ViT) -> str:
    network, first = backbone.vit, cast(Block, backbone.vit.blocks[0])
    hidden = cast(nn.Linear, first.mlp.fc1).out_features
    call = _call(
        "vit_giant_patch14_dinov2" if isinstance(first.mlp, GluMlp) else "vit_base_patch16_224",
        **_sizes(network, cast(int, first.attn.num_heads)),
        mlp_ratio=(hidden + 0.5) / network.embed_dim,  # of which timm takes the whole part
        init_values=None if isinstance(first.ls1, nn.Identity) else _LAYER_SCALE,
        reg_tokens=network.num_reg_tokens,
        no_embed_class=network.no_embed_class,
        dynamic_img_size=True,
        **({"global_pool": "avg", "fc_norm": True} if backbone.pool == "mean" else {}),
    )
    if backbone.resize == "timm":
        return call
    return (
        f"# other sizes than img_size: timm resizes positions its own way, this network by {backbone.resize!r}\n{call}"
    )


def _sizes(network: VisionTransformer | Beit, heads: int) -> dict[str, Any]:
    """What timm's functions of both kinds of transformer are told."""
    return {
        "img_size": network.patch_embed.img_size,
        "patch_size": network.patch_embed.patch_size[0],
        "in_chans": network.in_chans,
        "embed_dim": network.embed_dim,
        "depth": len(network.blocks),
        "num_heads": heads,
    }


def _beit(backbone: BEiT) -> str:
    network, first = backbone.beit, cast(BEiTBlock, backbone.beit.blocks[0])
    return _call(
        "beit_base_patch16_224",
        **_sizes(network, first.attn.num_heads),
        init_values=None if first.gamma_1 is None else _LAYER_SCALE,
        global_pool="token" if backbone.pool == "cls" else "avg",
    )


def _beit_weights(backbone: BEiT) -> dict[str, Tensor]:
    """A bias that all blocks share stands in each of them."""
    weights = _norm_renamed(backbone.beit.state_dict(), backbone.pool == "mean")
    shared = weights.pop("rel_pos_bias.relative_position_bias_table", None)
    if shared is not None:
        for i in range(len(backbone.beit.blocks)):
            weights[f"blocks.{i}.attn.relative_position_bias_table"] = shared.clone()
    return weights


def _norm_renamed(weights: Mapping[str, Tensor], mean: bool) -> dict[str, Tensor]:
    """timm calls the norm of the patches' mean `fc_norm`."""
    return {f"fc_{name}" if mean and name.startswith("norm.") else name: x for name, x in weights.items()}


def _swin(backbone: Swin) -> str:
    network = backbone.swin
    blocks = [cast(Any, stage).blocks for stage in network.layers]
    call = _call(
        "swin_tiny_patch4_window7_224",
        img_size=network.patch_embed.img_size,
        in_chans=cast(nn.Conv2d, network.patch_embed.proj).in_channels,
        embed_dim=network.embed_dim,
        depths=tuple(map(len, blocks)),
        num_heads=tuple(stage[0].attn.num_heads for stage in blocks),
        window_size=max(stage[0].window for stage in blocks),
    )
    norm = "norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6)"
    return f"import functools, torch  # timm's own norms have another eps\n{call[:-1]}, {norm})"


def _resnet(backbone: ResNet) -> str:
    network: Any = backbone.resnet
    stem = network.conv1
    if stem.out_channels != 64:
        raise ValueError("timm has no ResNet of this width: export its weights under the package's own names instead")
    lines = [_call(network.pretrained_cfg["architecture"], in_chans=stem.in_channels)]
    if stem.kernel_size == (3, 3):
        sizes = f"{stem.in_channels}, 64, 3, padding={stem.padding[0]}, bias=False"
        lines += ["import torch  # the stem for small images"]
        lines += [f"model.conv1, model.maxpool = torch.nn.Conv2d({sizes}), torch.nn.Identity()"]
    return "\n".join(lines)


def _first(network: Any) -> nn.Conv2d:
    """The convolution that sees the pixels, or the first of them."""
    names = network.pretrained_cfg["first_conv"]
    return network.get_submodule(names if isinstance(names, str) else names[0])
