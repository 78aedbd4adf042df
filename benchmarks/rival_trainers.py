"""How lightly trains a case: its data set, transforms, heads, losses and moving average, in a loop like its examples'.

As in its benchmarks on ImageNet, equally large views go through the network together (its short examples take one after
the other, which is slower). Apart from that, where its examples do other work than the papers, the work is made equal:

* MSN's prototypes learn (the examples hand the loss their `.data`, which has no gradient);
* MSN's focal views are whole (the examples drop patches of those, too);
* positions are learned (its network's are fixed by default).

lightly is imported only when asked for.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from contests import (
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Case,
    LoopTrainer,
    again_and_again,
    small_photos,
    transformer,
)
from prototile.views import Group

MASK_RATIO = 0.15


def network(case: Case) -> nn.Module:
    """Its wrapper around the network that ours wraps, with the same start."""
    masked = import_module("lightly.models.modules").MaskedVisionTransformerTIMM
    return masked(vit=transformer(case).vit, weight_initialization="skip", pos_embed_initialization="learn")


def transform(case: Case) -> Any:
    """Its views with our sizes and scales; for small images without blur and solarisation, as ours."""
    transforms = import_module("lightly.transforms")
    groups = case.augmentation.groups
    large, crops = groups[0], groups[-1]
    if case.method == "dino":
        small = {"gaussian_blur": (0.0, 0.0, 0.0), "solarization_prob": 0.0} if case.small else {}
        return transforms.DINOTransform(
            global_crop_size=large.size,
            global_crop_scale=_scale(large),
            local_crop_size=crops.size,
            local_crop_scale=_scale(crops),
            n_local_views=len(crops.views),
            **small,
        )
    return transforms.MSNTransform(
        random_size=large.size,
        focal_size=crops.size,
        random_views=2,
        focal_views=len(crops.views),
        random_crop_scale=_scale(large),
        focal_crop_scale=_scale(crops),
        **({"gaussian_blur": 0.0} if case.small else {}),
    )


def _scale(group: Group) -> tuple[float, float]:
    low, high = group.views[0].scale
    assert isinstance(low, float)
    assert isinstance(high, float)
    return low, high


class _Small(Dataset[tuple[Any, int]]):
    """Small images as torchvision's CIFAR gives them: Pillow's, one by one."""

    def __init__(self, images: np.ndarray, transform: Any):
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._images[index])), 0


def loader(case: Case, photos: Path, device: torch.device, workers: int) -> DataLoader[Any]:
    if case.small:
        images: Dataset[Any] = _Small(small_photos(), transform(case))
        count = len(small_photos())
    else:
        images = import_module("lightly.data").LightlyDataset(str(photos), transform=transform(case))
        count = len(images)  # type: ignore[arg-type]
    return DataLoader(
        Subset(images, again_and_again(count).tolist()),
        batch_size=case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


class _Lightly(LoopTrainer):
    """What both methods have in common."""

    def __init__(
        self,
        case: Case,
        photos: Path,
        device: torch.device,
        workers: int,
        head: Callable[[], nn.Module],
        extra: nn.Module,
    ):
        super().__init__(case, device)
        utils = import_module("lightly.models.utils")
        self._loader = loader(case, photos, device, workers)
        self._update_momentum = utils.update_momentum
        self._student = nn.ModuleList([network(case), head()]).to(device)
        self._teacher = nn.ModuleList([copy.deepcopy(self._student[0]), head()]).to(device)
        self._teacher.load_state_dict(self._student.state_dict())  # a head with weight norm cannot be copied
        for part in self._teacher:
            utils.deactivate_requires_grad(part)
        self._extra = extra.to(device)
        self.optimizer = torch.optim.AdamW(
            self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=device.type == "cuda" or None
        )

    def batches(self) -> Iterator[list[Tensor]]:
        while True:
            for batch in self._loader:
                yield batch[0]

    def update(self) -> None:
        self.optimizer.step()
        for student, teacher in zip(self._student, self._teacher, strict=True):
            self._update_momentum(student, teacher, MOMENTUM)

    def networks(self) -> list[tuple[str, nn.Module, nn.Module, nn.Module]]:
        return [
            (name, backbone, backbone.vit.blocks[0], head.layers)
            for name, (backbone, head) in (("student", self._student), ("teacher", self._teacher))
        ]

    def parameters(self) -> list[Tensor]:
        return [*self._student.parameters(), *self._extra.parameters()]

    def close(self) -> None:
        self._endless = None
        del self._loader

    def _there(self, views: list[Tensor]) -> list[Tensor]:
        return [view.to(self.device, non_blocking=True) for view in views]


class LightlyDINO(_Lightly):
    """DINOTransform, DINOProjectionHead, DINOLoss."""

    def __init__(self, case: Case, photos: Path, device: torch.device, workers: int):
        warnings.filterwarnings("ignore", ".*weight_norm. is deprecated.*", FutureWarning)  # which its head uses
        made = import_module("lightly.models.modules").DINOProjectionHead
        head = partial(made, input_dim=transformer(case).dims, output_dim=case.prototypes)
        super().__init__(case, photos, device, workers, head, nn.Module())
        self._criterion = import_module("lightly.loss").DINOLoss(output_dim=case.prototypes).to(device)

    def loss(self, batch: list[Tensor]) -> Tensor:
        views = self._there(batch)
        large, crops = torch.cat(views[:2]), torch.cat(views[2:])
        with torch.no_grad():
            targets = self._scores(self._teacher, large).chunk(2)
        scores = [
            *self._scores(self._student, large).chunk(2),
            *self._scores(self._student, crops).chunk(len(views) - 2),
        ]
        return self._criterion(list(targets), scores)

    def _scores(self, parts: nn.ModuleList, images: Tensor) -> Tensor:
        backbone, head = parts
        return head(backbone(images))

    def networks(self) -> list[tuple[str, nn.Module, nn.Module, nn.Module]]:
        self._student[1].last_layer.register_full_backward_pre_hook(lambda *_: self.clock.enter("loss"))
        return super().networks()


class LightlyMSN(_Lightly):
    """MSNTransform, MSNProjectionHead, MSNLoss."""

    def __init__(self, case: Case, photos: Path, device: torch.device, workers: int):
        head = partial(
            import_module("lightly.models.modules.heads").MSNProjectionHead, input_dim=transformer(case).dims
        )
        super().__init__(case, photos, device, workers, head, nn.Linear(256, case.prototypes, bias=False))
        self._criterion = import_module("lightly.loss").MSNLoss()
        self._random_token_mask = import_module("lightly.models.utils").random_token_mask

    def loss(self, batch: list[Tensor]) -> Tensor:
        target, anchor, *focal = self._there(batch)
        with torch.no_grad():
            backbone, head = self._teacher
            targets = head(backbone(target))
        backbone, head = self._student
        size = (len(anchor), backbone.sequence_length)
        keep, _ = self._random_token_mask(size=size, mask_ratio=MASK_RATIO, device=anchor.device)
        anchors = torch.cat([head(backbone(anchor, idx_keep=keep)), head(backbone(torch.cat(focal)))])
        return self._criterion(anchors, targets, self._extra.weight)


RIVALS: dict[str, type[_Lightly]] = {"dino": LightlyDINO, "msn": LightlyMSN}
