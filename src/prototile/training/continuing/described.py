"""From plain values to what they describe, and back: parts of methods, schedules, optimisations, backbones.

build(description)             {"class_path": ..., "init_args": ...} -> the object; names of this package only
optimization_of(plain)         what a run's checkpoint says of its optimisation
describe(backbone)             how to build it again
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prototile import balancing, priors, schedules, views
from prototile.backbones import Backbone, ResNet, Swin, ViT
from prototile.backbones.beit import BEiT
from prototile.backbones.resnet import DEPTHS
from prototile.balancing import Balancer
from prototile.checkpoints import native
from prototile.methods import addons
from prototile.schedules import Schedule
from prototile.training.optimization import Optimization, Special
from prototile.views import Normalization, masks, presets, spec

# Where the names of descriptions are looked up; a balancer is described without its prior.
_MODULES = (balancing, priors, schedules, addons, presets, masks, spec, views)


def build(description: Any) -> Any:
    """What plain values describe; lists and mappings of them too."""
    if isinstance(description, Mapping):
        if "class_path" not in description:
            if set(description) == {"mean", "std"}:
                return Normalization(tuple(description["mean"]), tuple(description["std"]))
            return {name: build(value) for name, value in description.items()}
        call = _named(str(description["class_path"]))
        arguments = {name: build(value) for name, value in dict(description.get("init_args") or {}).items()}
        if isinstance(call, type) and issubclass(call, Balancer):
            return functools.partial(call, **arguments)
        return call(**arguments)
    return tuple(build(value) for value in description) if isinstance(description, list | tuple) else description


def _named(path: str) -> Any:
    room, _, name = path.rpartition(".")
    if f"{room}.".startswith("prototile.") and not name.startswith("_"):
        for module in _MODULES:
            found = vars(module).get(name)
            if callable(found) and getattr(found, "__module__", "").startswith("prototile."):
                return found
    raise ValueError(f"{path} is no part of this package: say which method it is, and its options")


def optimization_of(plain: Mapping[str, Any]) -> Optimization:
    """The optimisation that a checkpoint's settings tell, as `fit` wrote them."""
    fields = {name: _schedule(value) for name, value in plain.items() if name not in ("class", "roles", "betas")}
    roles = {
        role: Special(**{name: _schedule(value) for name, value in special.items() if name != "class"})
        for role, special in plain["roles"].items()
    }
    return Optimization(**fields, betas=tuple(plain["betas"]), roles=roles)


def _schedule(value: Any) -> Any:
    """A schedule from its class's name and fields; other values as they are."""
    if not isinstance(value, Mapping) or "class" not in value:
        return value
    kind = vars(schedules).get(str(value["class"]))
    if not isinstance(kind, type) or not issubclass(kind, Schedule):
        raise ValueError(f"the run was scheduled by {value['class']}, which is not of this package: give lr")
    arguments = {name: _schedule(x) for name, x in value.items() if name != "class"}
    return kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in arguments.items()})


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """A description that builds a network of these sizes and options; None where there is none."""
    match backbone:
        case ViT():
            found = _vit(backbone)
        case BEiT():
            found = _beit(backbone)
        case Swin():
            found = _swin(backbone)
        case ResNet():
            found = _resnet(backbone)
        case _:
            return None
    return found if found is not None and _builds(found, backbone) else None


def _builds(description: Mapping[str, Any], backbone: Backbone) -> bool:
    """Whether it gives a network of the same weights' names and shapes."""
    try:
        with torch.device("meta"):
            made = native.build(description)
    except ValueError:
        return False
    return {name: x.shape for name, x in made.state_dict().items()} == {
        name: x.shape for name, x in backbone.state_dict().items()
    }


def _described(function: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"prototile.backbones.{function}", "init_args": options}


def _vit(backbone: ViT) -> dict[str, Any]:
    network: Any = backbone.vit
    first = network.blocks[0]
    scaled, hidden = not isinstance(first.ls1, nn.Identity), first.mlp.fc1.out_features
    return _described(
        "vit",
        patch=backbone.patch,
        image_size=network.patch_embed.img_size[0],
        channels=network.in_chans,
        layer_scale=1e-5 if scaled else None,
        positions="learned" if network.pos_embed.requires_grad else "sincos",
        resize=backbone.resize,
        mask_token=backbone.mask_token is not None,
        registers=network.num_reg_tokens,
        mlp="swiglu" if first.mlp.fc2.in_features != hidden else "gelu",
        pool=backbone.pool,
        dims=network.embed_dim,
        depth=len(network.blocks),
        heads=first.attn.num_heads,
        hidden=hidden,
    )


def _beit(backbone: BEiT) -> dict[str, Any]:
    network: Any = backbone.beit
    first = network.blocks[0]
    return _described(
        "beit",
        patch=backbone.patch,
        image_size=network.patch_embed.img_size[0],
        channels=network.patch_embed.proj.in_channels,
        layer_scale=None if first.gamma_1 is None else 1e-4,
        mask_token=backbone.mask_token is not None,
        shared_bias=network.rel_pos_bias is not None,
        pool=backbone.pool,
        dims=network.embed_dim,
        depth=len(network.blocks),
        heads=first.attn.num_heads,
    )


def _swin(backbone: Swin) -> dict[str, Any]:
    network: Any = backbone.swin
    stages = list(network.layers)
    first = [stage.blocks[0] for stage in stages]
    return _described(
        "swin",
        window=max(block.window for block in first),
        image_size=network.patch_embed.img_size[0],
        channels=network.patch_embed.proj.in_channels,
        mask_token=backbone.mask_token is not None,
        dims=network.embed_dim,
        depths=[len(stage.blocks) for stage in stages],
        heads=[block.attn.num_heads for block in first],
    )


def _resnet(backbone: ResNet) -> dict[str, Any] | None:
    network: Any = backbone.resnet
    depths = tuple(len(network.get_submodule(f"layer{i}")) for i in range(1, 5))
    deep = hasattr(network.get_submodule("layer1.0"), "conv3")
    if (deep, depths) not in DEPTHS:
        return None
    first = network.conv1
    stem = "imagenet" if first.kernel_size == (7, 7) else "padded" if first.padding == (2, 2) else "cifar"
    return _described(
        "resnet", name=DEPTHS[deep, depths], stem=stem, channels=first.in_channels, width=first.out_channels
    )
