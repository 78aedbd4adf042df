"""Small files in the layouts of other projects: official names, true structure, few numbers.

Weights come from their names (`goldens.weight`), so a network that gets the wrong ones gives other numbers.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import goldens

Shapes = dict[str, tuple[int, ...]]
Contents = dict[str, Any]

DIMS, SIDE, PATCH, K = 32, 32, 8, 12  # of a ViT, its images and patches, and how many prototypes


def filled(shapes: Mapping[str, Sequence[int]], salt: str = "", *, ones: bool = False) -> dict[str, Tensor]:
    return {name: goldens.weight(salt + name, tuple(shape), _dtype(name), ones=ones) for name, shape in shapes.items()}


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(("num_batches_tracked", "relative_position_index")) else torch.float32


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: x for name, x in tensors.items()}


def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, dims: int) -> Shapes:
    return {f"{name}.weight": (dims,), f"{name}.bias": (dims,)}


def batch_norm(name: str, dims: int, *, affine: bool = True) -> Shapes:
    stats: Shapes = {f"{name}.running_mean": (dims,), f"{name}.running_var": (dims,), f"{name}.num_batches_tracked": ()}
    return (norm(name, dims) if affine else {}) | stats


def mlp(prefix: str, widths: Sequence[int], *, normed: bool = False, bias: bool = True, last: bool = True) -> Shapes:
    """Layers with an activation between them, which takes a number too."""
    found, i = Shapes(), 0
    for n, (inputs, outputs) in enumerate(pairwise(widths)):
        final = n == len(widths) - 2
        found |= linear(f"{prefix}.{i}", inputs, outputs, bias=last if final else bias)
        if normed and not final:
            found |= batch_norm(f"{prefix}.{i + 1}", outputs)
        i += 3 if normed else 2
    return found


def vit(dims: int = DIMS, depth: int = 2, *, registers: int = 0, scale: bool = False, gated: bool = False) -> Shapes:
    found: Shapes = {"cls_token": (1, 1, dims), "pos_embed": (1, (SIDE // PATCH) ** 2 + 1, dims)}
    if registers:
        found["register_tokens"] = (1, registers, dims)
    found |= {"patch_embed.proj.weight": (dims, 3, PATCH, PATCH), "patch_embed.proj.bias": (dims,)}
    for i in range(depth):
        block = f"blocks.{i}"
        found |= norm(f"{block}.norm1", dims) | norm(f"{block}.norm2", dims)
        found |= linear(f"{block}.attn.qkv", dims, 3 * dims) | linear(f"{block}.attn.proj", dims, dims)
        if gated:
            found |= linear(f"{block}.mlp.w12", dims, 4 * dims) | linear(f"{block}.mlp.w3", 2 * dims, dims)
        else:
            found |= linear(f"{block}.mlp.fc1", dims, 4 * dims) | linear(f"{block}.mlp.fc2", 4 * dims, dims)
        if scale:
            found |= {f"{block}.ls1.gamma": (dims,), f"{block}.ls2.gamma": (dims,)}
    return found | norm("norm", dims)


def beit(dims: int = DIMS, depth: int = 2, heads: int = 2, *, shared: bool = True) -> Shapes:
    side = SIDE // PATCH
    rows = (2 * side - 1) ** 2 + 3
    tokens = side**2 + 1
    found: Shapes = {"cls_token": (1, 1, dims)}
    found |= {"patch_embed.proj.weight": (dims, 3, PATCH, PATCH), "patch_embed.proj.bias": (dims,)}
    bias = {"relative_position_bias_table": (rows, heads), "relative_position_index": (tokens, tokens)}
    if shared:
        found |= under("rel_pos_bias.", bias) | {"mask_token": (1, 1, dims)}
    for i in range(depth):
        block = f"blocks.{i}"
        found |= {f"{block}.gamma_1": (dims,), f"{block}.gamma_2": (dims,)}
        found |= norm(f"{block}.norm1", dims) | norm(f"{block}.norm2", dims)
        found |= {f"{block}.attn.q_bias": (dims,), f"{block}.attn.v_bias": (dims,)}
        found |= {} if shared else under(f"{block}.attn.", bias)
        found |= linear(f"{block}.attn.qkv", dims, 3 * dims, bias=False) | linear(f"{block}.attn.proj", dims, dims)
        found |= linear(f"{block}.mlp.fc1", dims, 4 * dims) | linear(f"{block}.mlp.fc2", 4 * dims, dims)
    return found | norm("norm" if shared else "fc_norm", dims)


def swin(
    dims: int = 8, depths: Sequence[int] = (2, 2), heads: Sequence[int] = (2, 4), windows: Sequence[int] = (4, 2)
) -> Shapes:
    found: Shapes = {"patch_embed.proj.weight": (dims, 3, 4, 4), "patch_embed.proj.bias": (dims,)}
    found |= norm("patch_embed.norm", dims)
    for stage, (depth, number, side) in enumerate(zip(depths, heads, windows, strict=True)):
        d = dims * 2**stage
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            found |= norm(f"{block}.norm1", d) | norm(f"{block}.norm2", d)
            found |= {
                f"{block}.attn.relative_position_bias_table": ((2 * side - 1) ** 2, number),
                f"{block}.attn.relative_position_index": (side**2, side**2),
            }
            found |= linear(f"{block}.attn.qkv", d, 3 * d) | linear(f"{block}.attn.proj", d, d)
            found |= linear(f"{block}.mlp.fc1", d, 4 * d) | linear(f"{block}.mlp.fc2", 4 * d, d)
        if stage < len(depths) - 1:
            found |= linear(f"layers.{stage}.downsample.reduction", 4 * d, 2 * d, bias=False)
            found |= norm(f"layers.{stage}.downsample.norm", 4 * d)
    return found | norm("norm", dims * 2 ** (len(depths) - 1))


def resnet(width: int = 4, depths: Sequence[int] = (2, 2, 2, 2), *, deep: bool = False, side: int = 7) -> Shapes:
    found: Shapes = {"conv1.weight": (width, 3, side, side)} | batch_norm("bn1", width)
    inputs = width
    for stage, depth in enumerate(depths, start=1):
        d = width * 2 ** (stage - 1)
        outputs = 4 * d if deep else d
        for i in range(depth):
            block = f"layer{stage}.{i}"
            sides = ((inputs, d, 1), (d, d, 3), (d, outputs, 1)) if deep else ((inputs, d, 3), (d, d, 3))
            for n, (a, b, kernel) in enumerate(sides, start=1):
                found |= {f"{block}.conv{n}.weight": (b, a, kernel, kernel)} | batch_norm(f"{block}.bn{n}", b)
            if i == 0 and inputs != outputs:
                found |= {f"{block}.downsample.0.weight": (outputs, inputs, 1, 1)}
                found |= batch_norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return found


def weight_norm(name: str, k: int = K, dims: int = 6) -> Shapes:
    return {f"{name}.weight_g": (k, 1), f"{name}.weight_v": (k, dims)}


def dino_head(prefix: str = "head", dims: int = DIMS, k: int = K, *, normed: bool = False) -> Shapes:
    return mlp(f"{prefix}.mlp", (dims, 10, 10, 6), normed=normed) | weight_norm(f"{prefix}.last_layer", k)


def both(shapes: Shapes, *, teacher: str = "", student: str = "module.", ones: bool = False, **other: Any) -> Contents:
    """A file of a teacher and a student with what stands beside them."""
    return {
        "teacher": under(teacher, filled(shapes, ones=ones)),
        "student": under(student, filled(shapes, "student:", ones=ones)),
        "epoch": 3,
        "args": Namespace(lr=0.1, arch="small"),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        **other,
    }


def _dino(backbone: Shapes, head: Shapes, **options: Any) -> Contents:
    return both(under("backbone.", backbone) | head, dino_loss={"center": torch.zeros(1, K)}, **options)


def _ibot(backbone: Shapes, dims: int) -> Contents:
    shapes = under("backbone.", backbone) | dino_head(dims=dims) | weight_norm("head.last_layer2", 5)
    found = both(shapes, ibot_loss={"center": torch.zeros(1, K), "center2": torch.zeros(1, 1, 5)})
    token = backbone["patch_embed.proj.weight"][0]
    found["student"] |= filled({"module.backbone.masked_embed": (1, token)})
    return found


def _esvit(backbone: Shapes, dims: int, *, prefix: str = "", dense: bool = True, **options: Any) -> Contents:
    shapes = under(prefix, backbone) | dino_head(dims=dims) | (dino_head("head_dense", dims, 7) if dense else {})
    return both(shapes, dino_loss={"center": torch.zeros(1, K), "center_grid": torch.zeros(1, 7)}, **options)


def msn(*, normed: bool = True) -> Contents:
    widths = (DIMS, 10, 10, 6)
    head = Shapes()
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        head |= linear(f"fc.fc{i}", a, b) | (batch_norm(f"fc.bn{i}", b) if normed and i < 3 else {})
    shapes = vit() | head
    return {
        "target_encoder": under("module.", filled(shapes)),
        "encoder": under("module.", filled(shapes, "student:")),
        "prototypes": filled({"prototypes": (K, 6)})["prototypes"],
        "opt": {"state": {0: {"m": torch.zeros(2)}}},
        "epoch": 3,
        "temperature": 0.1,
        "loss": 1.0,
    }


def swav(*, sets: int = 0, width: int = 4, normed: bool = True) -> Contents:
    dims = width * 32
    shapes = resnet(width, (3, 4, 6, 3), deep=True) | mlp("projection_head", (dims, 10, 6), normed=normed)
    names = [f"prototypes.prototypes{i}.weight" for i in range(sets)] or ["prototypes.weight"]
    return under("module.", filled(shapes | {name: (K + i, 6) for i, name in enumerate(names)}))


def _excb(backbone: Shapes, dims: int, *, normed: bool) -> Contents:
    shapes = under("backbone.", backbone) | mlp("classifier.projector.mlp", (dims, 10, 10, 6), normed=normed)
    shapes |= mlp("classifier.predictor.mlp", (6, 10, 6), normed=normed) | weight_norm("classifier.centroid_layer")
    shapes |= batch_norm("classifier.predictor_activation", 6)
    criterion = {"center": torch.ones(1, K), "cluster_count": torch.zeros(K)}
    return both(shapes, student="", ones=True, criterion=criterion, scheduler={"last_epoch": 3}, ks=0, train_step=1)


def _mae(*, decoder: bool) -> Contents:
    shapes = vit()
    if decoder:
        inner = {name.replace("blocks.", "decoder_blocks."): x for name, x in vit(64, 1).items() if "blocks" in name}
        shapes |= inner | linear("decoder_embed", DIMS, 64) | linear("decoder_pred", 64, 3 * PATCH**2)
        shapes |= norm("decoder_norm", 64) | {"mask_token": (1, 1, 64), "decoder_pos_embed": (1, 17, 64)}
    return {"model": filled(shapes), "epoch": 799, "args": Namespace(model="mae"), "scaler": {"scale": 1.0}}


def _fine_tuned() -> Contents:
    shapes = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: x for name, x in vit().items()}
    return {"model": filled(shapes | linear("head", DIMS, 5))}


def _data2vec() -> Contents:
    shapes = beit() | linear("lm_head", DIMS, DIMS)
    return {"model": filled(shapes), "model_ema": filled(shapes, "student:"), "epoch": 799, "args": Namespace()}


def lightning(tensors: dict[str, Tensor]) -> Contents:
    return {
        "state_dict": tensors,
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "2.1.0",
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"m": torch.zeros(2)}}}],
        "lr_schedulers": [],
        "loops": {},
        "callbacks": {},
    }


def _solo(*parts: Shapes, backbone: str = "backbone.") -> Contents:
    shapes = under(backbone, resnet(side=3)) | linear("classifier", 32, 10)
    for part in parts:
        shapes |= part
    return lightning(filled(shapes, ones=True))


def _solo_dino() -> Contents:
    shapes = dino_head("head", 32, normed=True) | dino_head("momentum_head", 32, normed=True)
    found = _solo(shapes, under("momentum_backbone.", resnet(side=3)), {"dino_loss_func.center": (1, K)})
    return found


def _lightly_dino(*, listed: bool) -> Contents:
    backbone = resnet()
    if listed:  # nn.Sequential(*resnet.children())
        numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
        backbone = {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": x for name, x in backbone.items()}
    head = {name.replace("head.mlp", "projection_head.layers"): x for name, x in dino_head(dims=32).items()}
    head = {
        name.replace("head.last", "projection_head.last") if name.startswith("head.") else name: x
        for name, x in head.items()
    }
    one = under("backbone.", backbone) | head
    whole = one | under("student_", one) | linear("online_classifier", 32, 10) | {"criterion.center": (1, K)}
    return lightning(filled(whole))


def _lightly_swav() -> Contents:
    shapes = under("backbone.", resnet()) | mlp("projection_head.layers", (32, 10, 6), normed=True, bias=False)
    return lightning(filled(shapes | linear("prototypes.heads.0", 6, K) | {"criterion.center": (1, 2)}))


def _lightly_tokens(heads: Sequence[str], inner: str = "") -> Contents:
    shapes = Shapes()
    for network in ("teacher", "student"):
        shapes |= under(f"{network}_backbone.vit.", vit() | linear("head", DIMS, 10))
        shapes |= {f"{network}_backbone.mask_token": (1, 1, DIMS)}
        for head in heads:
            kept = f"{network}_{head}" + (inner.format(head) if inner else "")
            renamed = {name.replace("head.mlp", f"{kept}.layers"): x for name, x in dino_head().items()}
            shapes |= {
                name.replace("head.last_layer", f"{kept}.last_layer") if name.startswith("head.") else name: x
                for name, x in renamed.items()
            }
    return lightning(filled(shapes))


def _lightly_msn() -> Contents:
    one = under("backbone.", vit()) | mlp("projection_head.layers", (DIMS, 10, 10, 6), normed=True, bias=False)
    anchor = {f"anchor_{name}": x for name, x in one.items()}
    return lightning(filled(one | anchor | {"prototypes": (K, 6)}))


def _vissl(kind: str) -> Contents:
    if kind == "swav":
        trunk = under("_feature_blocks.", resnet())
        heads = mlp("0.projection_head", (32, 10, 6), normed=True) | {"0.prototypes0.weight": (K, 6)}
    else:
        trunk, heads = vit(), mlp("0.mlp", (DIMS, 10, 6)) | weight_norm("0.prototypes0")
    model = {"trunk": filled(trunk), "heads": filled(heads)}
    state = {"train": True, "base_model": {"model": model, "meta": {}}, "optimizer": {"m": torch.zeros(2)}}
    return {"phase_idx": 3, "iteration": 7, "classy_state_dict": state}


def _dinov2(*, registers: int = 0, heads: bool = False) -> Contents:
    shapes = vit(scale=True, registers=registers, gated=heads, depth=4 if heads else 2) | {"mask_token": (1, DIMS)}
    if not heads:
        return filled(shapes)
    chunked = {
        f"blocks.{int(name.split('.')[1]) // 2}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else name: x
        for name, x in shapes.items()
    }
    whole = under("backbone.", chunked) | dino_head("dino_head") | dino_head("ibot_head", k=7)
    return {"teacher": filled(whole)}


def _simsiam() -> Contents:
    encoder = resnet() | mlp("fc", (32, 10, 10, 6), normed=True, bias=False) | batch_norm("fc.7", 6, affine=False)
    shapes = under("encoder.", encoder) | mlp("predictor", (6, 4, 6), normed=True, bias=False)
    return {"state_dict": under("module.", filled(shapes)), "epoch": 3, "arch": "resnet18", "optimizer": {}}


def _vicreg(width: int = 4) -> Contents:
    backbone = resnet(width, (3, 4, 6, 3), deep=True)
    shapes = under("backbone.", backbone) | mlp("projector", (width * 32, 10, 10, 10), normed=True, last=False)
    return {"model": under("module.", filled(shapes)), "epoch": 3, "optimizer": {}}


def _renamed(contents: Contents, old: str, new: str) -> Contents:
    def name_of(name: Any) -> Any:
        return name.replace(old, new) if isinstance(name, str) else name

    return {
        key: {name_of(name): x for name, x in value.items()} if isinstance(value, dict) else value
        for key, value in contents.items()
    }


CVT = under("stage0.", linear("patch_embed.proj", 3, 4) | norm("blocks.0.norm1", 4)) | norm("norm", 16)
VIL = under("layer1.", linear("0.proj", 3, 4) | linear("1.attn.query", 4, 4)) | norm("norm", 16)

# name -> (how the file is made, layout, kinds of heads, what else there is)
CASES: dict[str, tuple[Any, str, set[str], set[str]]] = {
    "dino vit": (lambda: _dino(vit(), dino_head()), "DINO", {"cls"}, set()),
    "dino resnet, batch norm in the head": (
        lambda: _dino(resnet(), dino_head(dims=32, normed=True), teacher="module."),
        "DINO",
        {"cls"},
        set(),
    ),
    "dino resnet, plain last layer": (
        lambda: _dino(resnet(), mlp("head.mlp", (32, 10, 6)) | {"head.last_layer.weight": (K, 6)}, teacher="module."),
        "DINO",
        {"cls"},
        set(),
    ),
    "dino, one layer": (
        lambda: _dino(vit(), linear("head.mlp", DIMS, 6) | weight_norm("head.last_layer")),
        "DINO",
        {"cls"},
        set(),
    ),
    "dino, new weight norm": (
        lambda: _renamed(
            _renamed(_dino(vit(), dino_head()), "weight_g", "parametrizations.weight.original0"),
            "weight_v",
            "parametrizations.weight.original1",
        ),
        "DINO",
        {"cls"},
        set(),
    ),
    "dino, old keys": (
        lambda: _renamed(_renamed(_dino(vit(), dino_head()), "backbone.", ""), "head.", "projection_head."),
        "DINO",
        {"cls"},
        set(),
    ),
    "dino vit alone": (lambda: filled(vit()), "DINO", set(), set()),
    "resnet alone": (lambda: filled(resnet()), "DINO or VICReg", set(), set()),
    "ibot vit, separate prototypes": (lambda: _ibot(vit(), DIMS), "iBOT", {"cls", "patches"}, set()),
    "ibot swin": (lambda: _ibot(swin(), 16), "iBOT", {"cls", "patches"}, set()),
    "ibot vit alone": (lambda: {"state_dict": filled(vit())}, "iBOT", set(), set()),
    "ibot swin alone": (lambda: {"state_dict": filled(swin())}, "iBOT", set(), set()),
    "esvit swin": (lambda: _esvit(swin(), 16), "EsViT", {"cls", "patches"}, set()),
    "esvit swin, one head": (lambda: _esvit(swin(), 16, dense=False), "EsViT", {"cls"}, set()),
    "esvit resnet": (
        lambda: _esvit(resnet(), 32, prefix="backbone.backbone.", teacher="module."),
        "EsViT",
        {"cls", "patches"},
        set(),
    ),
    "esvit cvt": (lambda: _esvit(CVT, 16), "EsViT", {"cls", "patches"}, {"no backbone"}),
    "esvit vil": (lambda: _esvit(VIL, 16), "EsViT", {"cls", "patches"}, {"no backbone"}),
    "dinov2": (lambda: _dinov2(), "DINOv2", set(), set()),
    "dinov2 with registers": (lambda: _dinov2(registers=3), "DINOv2", set(), set()),
    "dinov2, blocks in chunks, gated, two heads": (lambda: _dinov2(heads=True), "DINOv2", {"cls", "patches"}, set()),
    "msn": (msn, "MSN", {"cls"}, set()),
    "msn without batch norm": (lambda: msn(normed=False), "MSN", {"cls"}, set()),
    "swav": (swav, "SwAV", {"cls"}, set()),
    "swav in training": (
        lambda: {"state_dict": swav(), "epoch": 3, "optimizer": {}, "amp": {}},
        "SwAV",
        {"cls"},
        set(),
    ),
    "swav of double width": (lambda: swav(width=8), "SwAV", {"cls"}, set()),
    "swav without batch norm": (lambda: swav(normed=False), "SwAV", {"cls"}, set()),
    "deepcluster-v2": (lambda: swav(sets=3), "DeepCluster-v2", {"cls", "cls2", "cls3"}, set()),
    "excb vit": (lambda: _excb(vit(), DIMS, normed=False), "ExCB", {"cls"}, {"predictor"}),
    "excb resnet": (lambda: _excb(resnet(), 32, normed=True), "ExCB", {"cls"}, {"predictor"}),
    "excb resnet, old keys": (
        lambda: _renamed(
            _renamed(_excb(resnet(), 32, normed=True), "backbone.conv1", "backbone.layer0.0"),
            "backbone.bn1",
            "backbone.layer0.1",
        ),
        "ExCB",
        {"cls"},
        {"predictor"},
    ),
    "vicreg": (_vicreg, "VICReg", set(), {"projector"}),
    "vicreg of double width": (lambda: _vicreg(8), "VICReg", set(), {"projector"}),
    "simsiam": (_simsiam, "SimSiam", set(), {"projector", "predictor"}),
    "simsiam, linear": (
        lambda: {
            "state_dict": under("module.", filled(resnet() | linear("fc", 32, 10))),
            "best_acc1": torch.tensor(0.5),
            "arch": "resnet18",
        },
        "SimSiam",
        set(),
        set(),
    ),
    "mae": (lambda: _mae(decoder=False), "MAE", set(), set()),
    "mae with its decoder": (lambda: _mae(decoder=True), "MAE", set(), {"decoder"}),
    "mae, fine-tuned": (_fine_tuned, "MAE", set(), set()),
    "data2vec": (_data2vec, "data2vec", set(), {"predictor"}),
    "data2vec, fine-tuned": (
        lambda: {"module": filled(beit(shared=False) | linear("head", DIMS, 5)), "global_steps": 3},
        "data2vec",
        set(),
        set(),
    ),
    "solo-learn swav": (
        lambda: _solo(mlp("projector", (32, 10, 6), normed=True), weight_norm("prototypes")),
        "solo-learn",
        {"cls"},
        set(),
    ),
    "solo-learn deepcluster-v2, old keys": (
        lambda: _solo(
            mlp("projector", (32, 10, 6), normed=True),
            {f"prototypes.{i}.weight": (K, 6) for i in range(2)},
            backbone="encoder.",
        ),
        "solo-learn",
        {"cls", "cls2"},
        set(),
    ),
    "solo-learn dino": (_solo_dino, "solo-learn", {"cls"}, set()),
    "lightly dino": (lambda: _lightly_dino(listed=False), "lightly", {"cls"}, set()),
    "lightly dino, a list of layers": (lambda: _lightly_dino(listed=True), "lightly", {"cls"}, set()),
    "lightly swav": (_lightly_swav, "lightly", {"cls"}, set()),
    "lightly msn": (_lightly_msn, "lightly", {"cls"}, set()),
    "lightly ibot": (
        lambda: _lightly_tokens(("head", "cls_head", "patch_head")),
        "lightly",
        {"cls", "patches"},
        set(),
    ),
    "lightly dinov2": (
        lambda: _lightly_tokens(("dino_head", "ibot_head"), "._{}"),
        "lightly",
        {"cls", "patches"},
        set(),
    ),
    "vissl swav": (lambda: _vissl("swav"), "VISSL", {"cls"}, set()),
    "vissl dino": (lambda: _vissl("dino"), "VISSL", {"cls"}, set()),
}
