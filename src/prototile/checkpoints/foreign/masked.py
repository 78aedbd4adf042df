"""MAE (He et al. 2022, https://arxiv.org/abs/2111.06377) and data2vec (Baevski et al. 2022)."""

from prototile.backbones import Readout
from prototile.checkpoints.foreign.layout import TOP, Layout, Network

_CLASSIFIER = {r"^head\.(weight|bias)$": "a classifier of classes"}

MAE = Layout(
    name="MAE",
    networks={
        "only": Network(
            paths=(("model",), TOP),
            parts={"backbone": "", "decoder": "decoder_"},
            rules=((r"^mask_token$", "decoder_mask_token"),),
            aside=_CLASSIFIER,
        )
    },
    marks=(r"^cls_token$", r"^blocks\.0\.attn\.qkv\.weight$", r"^patch_embed\.proj\.weight$"),
    lacks=(r"\bls1\.gamma$", r"\bq_bias$", r"^(head|projection_head)\.mlp", r"^fc\."),
    resize="timm",
    readouts={kind: {"linear": Readout(), "finetuning": Readout()} for kind in ("vit",)},
)

_AUXILIARY = {
    "lr_scheduler": "state of the schedule",
    "csr_tensor_module_names": "bookkeeping of DeepSpeed",
}

DATA2VEC = Layout(
    name="data2vec",
    networks={
        "student": Network(
            paths=(("model",), ("module",)), parts={"backbone": "", "predictor": "lm_head."}, aside=_CLASSIFIER
        ),
        "teacher": Network(paths=(("model_ema",),), parts={"backbone": "", "predictor": "lm_head."}, aside=_CLASSIFIER),
    },
    marks=(r"^cls_token$", r"^blocks\.0\.attn\.q_bias$"),
    evaluated=("student", "the model, not its moving average, is what the project fine-tunes"),
    readouts={"beit": {"finetuning": Readout()}},
    entries=_AUXILIARY,
)
