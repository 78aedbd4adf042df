"""Features of augmented views, another one of each image in every epoch: the frozen network looks at each batch anew.

n images, m of them, b of a batch.
"""

from collections.abc import Iterator, Mapping

from jaxtyping import Float, Int
from torch import Tensor

from prototile.backbones import Backbone, Readout
from prototile.data.loader import Loader
from prototile.data.samplers import Shuffled
from prototile.data.source import Source, Subset
from prototile.evaluation.features import Crop, device_of, evaluating
from prototile.evaluation.heads import Feed
from prototile.views.spec import Augmentation, Group, View

_SMALL, _SMALLEST = 128, 0.3  # images below so many pixels have crops of at least this share, as `views.small`


def random_crops(crop: Crop) -> Augmentation:
    """Random resized crops and flips, of the size and normalisation of `crop`."""
    scale = (0.08 if crop.size >= _SMALL else _SMALLEST, 1.0)
    return Augmentation((Group((View(crop.size, scale),)),), crop.normalization)


class ViewsFeed(Feed):
    """What `readouts` read of views of the images numbered `rows`; the backbone stays in evaluation mode."""

    def __init__(
        self,
        backbone: Backbone,
        source: Source,
        readouts: Mapping[str, Readout],
        augmentation: Augmentation,
        batch: int,
        *,
        rows: Int[Tensor, " m"],
        seed: int = 0,
        workers: int | None = None,
    ):
        self._backbone, self._readouts, self._device = backbone, readouts, device_of(backbone)
        sampler = Shuffled(len(rows), batch, seed=seed, drop_last=False)
        device = self._device if self._device.type == "cuda" else None
        part = Subset(source, rows.numpy())
        self._loader = Loader(part, augmentation, sampler, seed=seed, workers=workers, device=device)

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int) -> Iterator[tuple[Mapping[str, Float[Tensor, "_b _d"]], Int[Tensor, " _b"]]]:
        self._loader.load_state_dict(self._loader.state_dict() | {"epoch": epoch, "step": 0})
        for batch in self._loader:
            with evaluating(self._backbone):
                images = batch.views[0].images[0].to(self._device)
                features = {name: readout(self._backbone, images) for name, readout in self._readouts.items()}
            assert batch.labels is not None
            yield features, batch.labels.to(self._device)
