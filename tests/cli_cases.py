"""The settings of a run as small as can be."""

TINY = {
    "data": "digits",
    "out": "runs/x",
    "method": "dino",
    "method.backbone": {"class_path": "vit", "size": "tiny", "patch": 8, "image_size": 32, "dims": 24, "depth": 1},
    "method.backbone.heads": 2,
    "method.num_prototypes": 16,
    "method.hidden": 16,
    "method.bottleneck": 8,
    "views": "small",
    "views.augmentation": "dino",
    "views.patch": 8,
    "optimization.lr": "Cosine",
    "optimization.lr.base": "1e-3",
    "optimization.lr.final": 0,
    "epochs": 1,
    "batch": 8,
}
