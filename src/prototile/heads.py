"""Prototypes, and the MLPs that lead from a backbone's features to the space they live in.

n rows, d dims, k prototypes. Linear layers of DINO's, MSN's and ExCB's heads start from a truncated normal of
standard deviation 0.02 and bias 0, those of the others as torch makes them.

    head                   layers (paper scale)                                              used by
    Head                   a projector and its prototypes                                    all that cluster but ExCB
    dino_head              d-2048-2048-256, GELU, batch norm optional                        DINO, iBOT, EsViT, DINOv2
    msn_head               d-2048-2048-256, batch norm, GELU                                 MSN, PMSN
    swav_head              d-2048-128, batch norm, ReLU                                      SwAV
    ExCBHead               d-2048-2048-256, and a predictor 256-2048-256                     ExCB
    simclr_head            d-2048-128, ReLU                                                  SimCLR
    vicreg_head            d-8192-8192-8192, batch norm, ReLU, last layer without bias       VICReg, Barlow Twins
    simsiam_projector      d-2048-2048-2048, batch norm after every layer                    SimSiam
    simsiam_predictor      2048-512-2048                                                     SimSiam
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile import distributed
from prototile.assignments import Assignments
from prototile.precision import wide
from prototile.sphere import normalize
from prototile.vmf import log_normalizer, log_normalizer_at_zero


class Prototypes(nn.Module):
    r"""K prototypes $w_k = g_k\, v_k / \|v_k\|$; called with embeddings, it gives their assignments.

    gain             norms g                          used by
    "one"            frozen at 1: cosines             DINO (`norm_last_layer`), MSN, ExCB
    "learned"        learned, from 1                  DINO without `norm_last_layer`, DINOv2
    "free"           none: w = v as it stands         SwAV, with `renormalize_()` before every step

    `vmf=True` makes the norms concentrations, $\kappa_k = \|w_k\| / \tau$, by the offset $\log C_d(\kappa_k)$
    (Govindarajan et al. 2023; the constant $\log C_d(0)$ is left out, a softmax does not see it); it needs gains
    that can differ.

    With `bias` each score has a number of its own added, before it is divided by the temperature (lightly's SwAV).

    Embeddings are L2-normalised here. Directions start from a truncated normal; their gradient is orthogonal to them
    where a gain is kept. `directions` are what diagnostics and KoLeo-proto look at, whatever the gain.

    `split_()` shares the rows out over ranks: each holds its part of the parameters, of their gradients and of their
    optimiser's state, and assignments are computed where the prototypes are (`prototile.assignments.sharded`).
    """

    def __init__(self, dims: int, num_prototypes: int, *, gain: str = "one", vmf: bool = False, bias: bool = False):
        super().__init__()
        if num_prototypes < 1 or dims < 1:
            raise ValueError(f"there must be at least one prototype and one dim, got {num_prototypes} and {dims}")
        if gain not in ("one", "learned", "free"):
            raise ValueError(f"gain must be 'one', 'learned' or 'free', got {gain!r}")
        if vmf and gain == "one":
            raise ValueError("vmf needs norms that can differ: gain must be 'learned' or 'free'")
        self.vmf = vmf
        self.vectors = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_prototypes, dims), std=0.02))
        self.gain = nn.Parameter(torch.ones(num_prototypes, 1)) if gain == "learned" else None
        self.bias = nn.Parameter(torch.zeros(num_prototypes)) if bias else None
        self.normalized = gain != "free"
        if not self.normalized:
            self.renormalize_()

    def forward(self, embeddings: Float[Tensor, "n d"], temperature: float, *, frozen: bool = False) -> Assignments:
        """The assignments of these rows; `frozen` makes prototypes constants in it."""
        weights, offset = self._scaled(distributed.own), self._offset(distributed.own, temperature)
        shard = distributed.shard_of(len(self.vectors)) if distributed.is_sharded(self.vectors) else None
        if offset is not None and shard is not None:
            offset = distributed.concatenate(offset, shard.counts)
        if frozen:
            weights, offset = weights.detach(), None if offset is None else offset.detach()
        return Assignments(normalize(embeddings), weights, temperature, offset, shard=shard)

    def offset(self, temperature: float) -> Float[Tensor, " k"] | None:
        """What is added to logits of this temperature, of all ranks: the bias, and vMF's normaliser."""
        return self._offset(distributed.whole, temperature)

    def weights(self) -> Float[Tensor, "k d"]:
        """The prototypes of all ranks, with their norms."""
        return self._scaled(distributed.whole)

    def directions(self) -> Float[Tensor, "k d"]:
        """The prototypes of all ranks, as unit vectors."""
        return normalize(distributed.whole(self.vectors))

    def _offset(self, part: Callable[[Tensor], Tensor], temperature: float) -> Float[Tensor, " k"] | None:
        own = None if self.bias is None else wide(part(self.bias)) / temperature
        if not self.vmf:
            return own
        weights = wide(self._scaled(part))
        kappa, dims = torch.linalg.vector_norm(weights, dim=-1) / temperature, weights.shape[1]
        found = (log_normalizer(kappa, dims) - log_normalizer_at_zero(dims)).to(weights.dtype)
        return found if own is None else found + own

    def _scaled(self, part: Callable[[Tensor], Tensor]) -> Float[Tensor, "k d"]:
        vectors = part(self.vectors)
        if not self.normalized:
            return vectors
        directions = normalize(vectors)
        return directions if self.gain is None else part(self.gain) * directions

    @torch.no_grad()
    def renormalize_(self) -> None:
        """Puts the vectors back on the unit sphere; with free gains, to be called before every step (SwAV)."""
        vectors = distributed.own(self.vectors)
        vectors.copy_(normalize(vectors))

    def split_(self) -> None:
        """Leaves each rank its part of the rows; where a rank would have none, all of them to all."""
        distributed.split_(self)


def mlp(
    widths: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.GELU,
    batch_norm: bool = False,
    hidden_bias: bool = True,
    last_bias: bool = True,
    truncated_normal: bool = False,
) -> nn.Sequential:
    """Linear layers of these widths; (batch norm and) activation between them, nothing after the last."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        linear = nn.Linear(widths[i], widths[i + 1], bias=last_bias if last else hidden_bias)
        if truncated_normal:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        layers.append(linear)
        if not last:
            layers += [nn.BatchNorm1d(widths[i + 1])] if batch_norm else []
            layers.append(activation())
    return nn.Sequential(*layers)


def dino_head(
    dims: int, *, hidden: int = 2048, bottleneck: int = 256, layers: int = 3, batch_norm: bool = False
) -> nn.Sequential:
    """Caron et al. 2021; batch norm for convolutional backbones. Prototypes follow, behind an L2 normalisation."""
    if layers < 1:
        raise ValueError(f"a head needs at least one layer, got {layers}")
    return mlp([dims, *[hidden] * (layers - 1), bottleneck], batch_norm=batch_norm, truncated_normal=True)


def msn_head(dims: int, *, hidden: int = 2048, bottleneck: int = 256) -> nn.Sequential:
    """Assran et al. 2022."""
    return mlp([dims, hidden, hidden, bottleneck], batch_norm=True, truncated_normal=True)


def swav_head(dims: int, *, hidden: int = 2048, bottleneck: int = 128) -> nn.Sequential:
    """Caron et al. 2020."""
    return mlp([dims, hidden, bottleneck], activation=nn.ReLU, batch_norm=True)


def simclr_head(dims: int, *, hidden: int = 2048, bottleneck: int = 128) -> nn.Sequential:
    """Chen et al. 2020."""
    return mlp([dims, hidden, bottleneck], activation=nn.ReLU)


def vicreg_head(dims: int, *, hidden: int = 8192, layers: int = 3) -> nn.Sequential:
    """Bardes et al. 2022, the expander."""
    return mlp([dims, *[hidden] * layers], activation=nn.ReLU, batch_norm=True, last_bias=False)


def simsiam_projector(dims: int, *, hidden: int = 2048) -> nn.Sequential:
    """Chen & He 2021; the last batch norm has no parameters, so the bias before it is left out."""
    layers = mlp(
        [dims, hidden, hidden, hidden], activation=nn.ReLU, batch_norm=True, hidden_bias=False, last_bias=False
    )
    return layers.append(nn.BatchNorm1d(hidden, affine=False))


def simsiam_predictor(dims: int = 2048, *, hidden: int = 512) -> nn.Sequential:
    """Chen & He 2021."""
    return mlp([dims, hidden, dims], activation=nn.ReLU, batch_norm=True, hidden_bias=False)


class Head(nn.Module):
    """A projector and the prototypes behind it."""

    def __init__(self, projector: nn.Module, prototypes: Prototypes):
        super().__init__()
        self.projector, self.prototypes = projector, prototypes

    def forward(self, features: Float[Tensor, "n d"], temperature: float) -> Assignments:
        return self.prototypes(self.projector(features), temperature)


class ExCBAssignments(NamedTuple):
    """`learning`: projections of global crops, on prototypes that learn. The others see prototypes as constants."""

    learning: Assignments
    local: Assignments
    predicted: Assignments


class ExCBHead(nn.Module):
    """Projector, predictor and prototypes, with the rule who may move the prototypes (ExCB, supplementary material).

    Prototypes learn from the projections of global crops alone: those of local crops and all predictions see them as
    constants. Features always receive gradient, and the predictor's passes on into the projector. Convolutional
    backbones use batch norm and ReLU; transformers neither, and GELU.
    """

    def __init__(
        self,
        dims: int,
        num_prototypes: int = 65536,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = True,
    ):
        super().__init__()
        widths = [dims, *[hidden] * layers, bottleneck]
        self.projector = mlp(widths, activation=activation, batch_norm=batch_norm, truncated_normal=True)
        widths = [bottleneck, hidden, bottleneck]
        self.predictor = mlp(widths, activation=activation, batch_norm=batch_norm, truncated_normal=True)
        if batch_norm:
            self.predictor.insert(0, nn.BatchNorm1d(bottleneck))
        self.prototypes = Prototypes(bottleneck, num_prototypes)

    def forward(
        self, global_features: Float[Tensor, "n d"], local_features: Float[Tensor, "m d"], temperature: float
    ) -> ExCBAssignments:
        """Predictions are view-major like the features: global crops, then local ones.

        All crops pass together, so that batch norm sees one batch.
        """
        projections = self.projector(torch.cat([global_features, local_features]))
        return self.assigned(projections, len(global_features), temperature)

    def assigned(self, projections: Float[Tensor, "n d"], num_global: int, temperature: float) -> ExCBAssignments:
        """From the projector's outputs on, of which the first `num_global` are those of global crops."""
        return ExCBAssignments(
            self.prototypes(projections[:num_global], temperature),
            self.prototypes(projections[num_global:], temperature, frozen=True),
            self.prototypes(self.predictor(projections), temperature, frozen=True),
        )
