"""From an imported checkpoint to the outputs that reference cases name.

A name is `[network.][HxW.]what[.part]`: `what` is features, or a matrix of scores of which `part` keeps some.
"""

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import goldens
from goldens import Golden
from prototile.backbones import Readout, ResNet, ViT
from prototile.checkpoints import Imported, load
from prototile.types import Features

NETWORKS = {
    "target_encoder": "teacher",
    "encoder": "student",
    "backbone": "evaluated",
    "model": "evaluated",
    "teacher": "teacher",
    "student": "student",
}
READOUTS = {
    "linear_eval_n4": Readout(blocks=4),
    "linear_eval_n1_avgpool_interleaved": Readout(blocks=1, patches="interleaved"),
    "linear_eval_n1_avgpool2_concat": Readout(blocks=1, patches="behind"),
    "linear1_input": Readout(blocks=1, patches="behind"),
    "linear4_input": Readout(blocks=4, patches="behind"),
    "n4_postnorm_avgpool": Readout(blocks=4, patches="behind"),
    "lowshot_feature_prenorm_n1": Readout(blocks=1, normed=False),
    "lineval_feature_prenorm_n4": Readout(blocks=4, normed=False),
    "linear_eval_avgpool6_stride1_8192": Readout(pool=6),
}
TOKENS = ("patch", "patch_postnorm", "region", "x_norm_patchtokens")  # before they are cut down to three
PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "l2": lambda x: x.norm(dim=-1),
    "l2_per_token": lambda x: x.norm(dim=-1),
    "max": lambda x: x.amax(-1),
    "argmax": lambda x: x.argmax(-1),
    "softmax_temp0.1_first64": lambda x: (x / 0.1).softmax(-1)[..., :64],
}


class Look:
    """What one imported network makes of images."""

    def __init__(self, imported: Imported, images: Tensor, mask: Tensor | None = None):
        self.imported, self.images, self.mask = imported, images, mask

    @cached_property
    def found(self) -> Features:
        assert self.imported.backbone is not None
        return self.imported.backbone(self.images, mask=self.mask)

    @cached_property
    def tokens(self) -> Tensor:
        backbone = self.imported.backbone
        if isinstance(backbone, ResNet):
            return backbone.regions(self.images).flatten(2).transpose(1, 2)
        assert self.found.patches is not None
        return self.found.patches

    def embeddings(self, kind: str = "cls") -> Tensor:
        return self.imported.heads[kind].projector(self.found.pooled)

    def scores(self, kind: str = "cls") -> Tensor:
        head = self.imported.heads[kind]
        if not kind.startswith("patches"):
            return head.scores(self.embeddings(kind))
        return head.scores(head.projector(self.tokens.flatten(0, 1))).unflatten(0, self.tokens.shape[:2])

    def matrix(self, name: str) -> Tensor | None:
        """The matrix of this name, whole; None where there is none."""
        heads = self.imported.heads
        if name in READOUTS:
            assert self.imported.backbone is not None
            return READOUTS[name](self.imported.backbone, self.images)
        if "0_5_last" in name:
            inner = re.sub(r"(_tokens_?|_)0_5_last", "", name)
            whole = self.tokens if inner in TOKENS else self.matrix(inner)
            return None if whole is None else whole[:, [0, 5, -1]]
        match name:
            case "features" | "x_norm_clstoken" | "cls_postnorm" | "cls":
                return self.found.pooled
            case "patch_tokens_mean" | "x_norm_patchtokens_mean" | "patch_mean_postnorm":
                return self.tokens.mean(1)
            case "last_block_patch_mean_prenorm":
                assert self.imported.backbone is not None
                return self.imported.backbone(self.images, blocks=1).blocks[0][:, 1:].mean(1)
            case "last_selfattention_cls_row_head0":
                return self._attention()
            case "lm_head":
                assert self.imported.predictor is not None
                return self.imported.predictor(self.tokens)
            case "projection" | "projection_raw" | "expander":
                projector = self.imported.projector
                return self.embeddings() if projector is None else projector(self.found.pooled)
            case "bottleneck_normalized" | "projection_unit" | "embedding":
                return F.normalize(self.embeddings(), dim=-1)
            case "prediction":
                assert self.imported.predictor is not None
                projection = self.matrix("projection")
                return self.imported.predictor(projection)
            case "predictor_cosine":
                assert self.imported.predictor is not None
                return heads["cls"].scores(self.imported.predictor(self.embeddings()))
            case "scores_unit_prototypes":
                return F.normalize(self.embeddings(), dim=-1) @ heads["cls"].prototypes.directions().T
            case "proto_softmax":
                return heads["cls"](self.found.pooled, 0.1).probabilities()
            case "proto_softmax_sharpened":
                powers = heads["cls"](self.found.pooled, 0.1).probabilities() ** 4
                return powers / powers.sum(1, keepdim=True)
        if (kind := self._kind(name)) is None:
            return None
        if "prototypes" in name or "centroids" in name:
            return heads[kind].prototypes.directions()
        return self.scores(kind)

    def _kind(self, name: str) -> str | None:
        """The head that a name means."""
        if not re.search(r"logits|scores|cosine|prototypes|centroids", name):
            return None
        kind = "patches" if re.match(r"(patch|dense|ibot|region)", name) else "cls"
        number = re.search(r"(\d+)(?=[._]|$)", name)
        several = f"{kind}{int(number[1]) + 1}" if number else kind
        return several if several in self.imported.heads else kind if kind in self.imported.heads else None

    def _attention(self) -> Tensor:
        """Where the class token looks in the last block, in its first head."""
        backbone = self.imported.backbone
        assert isinstance(backbone, ViT)
        before, block = backbone(self.images, blocks=2).blocks[0], backbone.vit.blocks[-1]
        qkv = block.attn.qkv(block.norm1(before)).unflatten(-1, (3, block.attn.num_heads, -1))
        queries, keys = qkv[:, :1, 0, 0], qkv[:, :, 1, 0]
        return (queries @ keys.transpose(1, 2) * block.attn.scale).softmax(-1)[:, 0]


def checker(images: Tensor, patch: int) -> Tensor:
    """A mask of all patches in an even row and an odd column."""
    mask = torch.zeros(len(images), images.shape[2] // patch, images.shape[3] // patch, dtype=torch.bool)
    mask[:, ::2, 1::2] = True
    return mask.flatten(1)


class Computed:
    """All outputs of a case from its file on disk."""

    def __init__(self, case: Golden, path: Path):
        self.case, self.path = case, path
        self._loaded: dict[str, Imported] = {}
        self._looks: dict[tuple[str, str, bool], Look] = {}

    def imported(self, network: str) -> Imported:
        if network not in self._loaded:
            self._loaded[network] = load(self.path, network=network)  # type: ignore[arg-type]
        return self._loaded[network]

    def __call__(self, name: str) -> Tensor | None:
        """The output of this name, None where it is not known."""
        words = name.split(".")
        network = "evaluated"
        if words[0] in NETWORKS and self.case.project != "mae":
            network = NETWORKS[words.pop(0)]
        size = words.pop(0) if re.fullmatch(r"\d+x\d+", words[0]) else ""
        masked = words[0] == "masked_checker"
        words = words[masked:]
        if self.case.project == "mae":
            return self._mae(".".join(words))
        look = self._look(network, size, masked)
        return kept(look.matrix, words)

    def _look(self, network: str, size: str, masked: bool) -> Look:
        key = (network, size, masked)
        if key not in self._looks:
            imported, about = self.imported(network), self.case.about["inputs"]
            height, width = map(int, size.split("x")) if size else about["sizes"][0]
            images = goldens.inputs(about["n"], height, width)
            assert not masked or (imported.backbone is not None and imported.backbone.patch is not None)
            self._looks[key] = Look(imported, images, checker(images, imported.backbone.patch) if masked else None)  # type: ignore[union-attr, arg-type]
        return self._looks[key]

    def _mae(self, name: str) -> Tensor | None:
        imported = self.imported("evaluated")
        look = self._look("evaluated", "", False)
        backbone, decoder = imported.backbone, imported.decoder
        assert isinstance(backbone, ViT)
        assert decoder is not None
        model, _, what = name.partition(".")
        every = torch.arange(look.tokens.shape[1]).expand(len(look.images), -1)
        match model, what:
            case "decoder", _:
                return decoder(look.found, every)[:, [0, 5, -1], :32]
            case "encoder", "masked_keep_every4.cls_postnorm":
                return backbone(look.images, keep=every[:, ::4]).cls
            case "models_vit", "global_pool_fc_norm":
                return self._fine_tuned(look.images)
            case _:
                return kept(look.matrix, what.split("."))

    def _fine_tuned(self, images: Tensor) -> Tensor:
        """The file as fine-tuning leaves it: another final norm, no decoder, a classifier."""
        whole = goldens.state(self.case.about, "model")
        dims = whole["norm.weight"].shape
        kept = {k: x for k, x in whole.items() if not k.startswith(("decoder_", "norm.", "mask_token"))}
        kept |= {name: goldens.weight(name, tuple(dims)) for name in ("fc_norm.weight", "fc_norm.bias")}
        kept |= {"head.weight": torch.zeros(5, *dims), "head.bias": torch.zeros(5)}
        path = self.path.with_name("fine_tuned.pth")
        torch.save({"model": kept}, path)
        backbone = load(path).backbone
        assert isinstance(backbone, nn.Module)
        return backbone(images).pooled


def kept(matrix: Callable[[str], Tensor | None], words: list[str]) -> Tensor | None:
    """The matrix that the first words name, and of it the part that the others do."""
    name, part = words[0], ".".join(words[1:])
    if (whole := matrix(name)) is None:
        return None
    if not part:
        return whole
    if part in PARTS:
        return PARTS[part](whole)
    if match := re.fullmatch(r"first(\d+)", part):
        count = int(match[1])
        return whole[:count] if "prototypes_unit" in name or "centroids" in name else whole[..., :count]
    return None


def differences(case: Golden, path: Path) -> Mapping[str, str]:
    """What of a case is not as it should be, in words, by the output's name."""
    computed, wrong = Computed(case, path), dict[str, str]()
    tolerance = case.about["tolerance"]
    for name, expected in case.outputs.items():
        actual = computed(name)
        if actual is None:
            wrong[name] = "is an output that nobody knows to compute"
        elif actual.shape != expected.shape:
            wrong[name] = f"is {tuple(actual.shape)} and should be {tuple(expected.shape)}"
        elif name.endswith("argmax"):
            if not torch.equal(actual, expected):
                wrong[name] = f"is {actual.tolist()} and should be {expected.tolist()}"
        elif not torch.allclose(actual, expected, rtol=tolerance["rtol"], atol=tolerance["atol"]):
            wrong[name] = f"is off by {float((actual - expected).abs().max()):.2g}"
    return wrong
