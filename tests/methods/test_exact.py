"""Every family against its formulas, written out densely from the networks' outputs."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method_cases import CASES, batch
from prototile import backbones, methods
from prototile.balancing import Sinkhorn
from prototile.kmeans import spherical_kmeans
from prototile.methods import Method
from prototile.methods.objectives import excb_pairs, nearest_regions
from prototile.priors import PowerLaw, Uniform
from prototile.schedules import Progress
from prototile.types import Views

NOW = Progress(0, 10, 2)


def made(name: str, **options) -> Method:
    torch.manual_seed(1)
    return CASES[name].make(**options).double()


def views_of(name: str, step: int = 0) -> tuple[Views, ...]:
    return tuple(replace(views, images=views.images.double()) for views in batch(name, step=step).views)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def scores(head, features: Tensor) -> Tensor:
    return unit(head.projector(features)) @ unit(head.prototypes.vectors).T


def cross_entropy(q: Tensor, log_p: Tensor) -> Tensor:
    return -(q * log_p).sum(-1)


def pooled(network, groups, *, hide: bool) -> list[Tensor]:
    """Of each view by itself, one by one."""
    found = []
    for views in groups:
        for i, images in enumerate(views.images):
            mask = None if views.mask is None or not hide else views.mask[i]
            keep = None if views.keep is None or not hide else views.keep[i]
            found.append(network.backbone(images, mask=mask, keep=keep).pooled)
    return found


def test_dino():
    method, views = made("dino"), views_of("dino")
    found = method(views, NOW).loss
    teacher = [scores(method.teacher.head, x) for x in pooled(method.teacher, views[:1], hide=False)]
    student = [scores(method.student.head, x) for x in pooled(method.student, views, hide=True)]
    pairs = [(t, s) for t in range(2) for s in range(len(student)) if s != t]
    terms = [
        cross_entropy((teacher[t] / 0.04).softmax(-1), (student[s] / 0.1).log_softmax(-1)).mean() for t, s in pairs
    ]
    torch.testing.assert_close(found, sum(terms) / len(pairs))
    center = torch.cat(teacher).mean(0) * 0.1  # the running mean began at zero, and was used before this
    torch.testing.assert_close(method.objectives[0].balancer.center, center)


def test_ibot_masked_patches():
    method, views = made("ibot", cls_weight=0.0), views_of("ibot")
    masked = views[0].mask
    assert masked.any()
    assert not masked.any(-1).all()  # some view has none
    found = method(views, NOW)
    student = method.student.backbone(views[0].images.flatten(0, 1), mask=masked.flatten(0, 1)).patches
    teacher = method.teacher.backbone(views[0].images.flatten(0, 1)).patches
    log_p = (scores(method.student.patch_head, student.flatten(0, 1)) / 0.1).log_softmax(-1)
    q = (scores(method.teacher.patch_head, teacher.flatten(0, 1)) / 0.04).softmax(-1)
    each = cross_entropy(q, log_p).view(masked.flatten(0, 1).shape)
    hidden = masked.flatten(0, 1).double()
    wanted = ((each * hidden).sum(-1) / hidden.sum(-1).clamp(min=1)).mean()
    torch.testing.assert_close(found.loss, wanted)
    center = scores(method.teacher.patch_head, teacher.flatten(0, 1)).mean(0) * 0.1  # of all patches
    torch.testing.assert_close(method.objectives[1].balancer.center, center)


def test_dinov2_observes_masked_patches_alone():
    method, views = made("dinov2"), views_of("dinov2")
    method(views, NOW)
    teacher = method.teacher.backbone(views[0].images.flatten(0, 1)).patches[views[0].mask.flatten(0, 1)]
    torch.testing.assert_close(
        method.objectives[1].balancer.center, scores(method.teacher.patch_head, teacher).mean(0) * 0.1
    )


def test_no_masked_patch_is_no_loss():
    method, views = made("ibot"), views_of("ibot")
    bare = replace(views[0], mask=torch.zeros_like(views[0].mask))
    terms = method((bare, *views[1:]), NOW)
    assert terms.parts["cross_entropy_patches"] == 0
    assert list(terms.clusters) == ["cls"]
    terms.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_esvit_regions():
    method, views = made("esvit", region_weight=1.0), views_of("esvit")
    found = method(views, NOW).loss
    student = [method.student.backbone(images).patches for group in views for images in group.images]
    teacher = [method.teacher.backbone(images).patches for images in views[0].images]
    total, pairs = torch.zeros(()), 0
    for t, targets in enumerate(teacher):
        for s, regions in enumerate(student):
            if s == t:
                continue
            pairs += 1
            for b in range(len(regions)):
                match = (unit(regions[b]) @ unit(targets[b]).T).argmax(1)
                q = (scores(method.teacher.patch_head, targets[b]) / 0.04).softmax(-1)[match]
                log_p = (scores(method.student.patch_head, regions[b]) / 0.1).log_softmax(-1)
                total = total + cross_entropy(q, log_p).mean() / len(regions)
    torch.testing.assert_close(found, total / pairs, check_dtype=False)


def test_nearest_regions_name_rows_of_their_own_image():
    teacher = torch.eye(4)[None].repeat(3, 1, 1)
    student = torch.stack([torch.eye(4)[[2, 0]], torch.eye(4)[[3, 3]], 5 * torch.eye(4)[[1, 2]]])
    assert nearest_regions(student, teacher).tolist() == [2, 0, 4 + 3, 4 + 3, 8 + 1, 8 + 2]


@pytest.mark.parametrize("biased", [False, True], ids=["as published", "with lightly's bias"])
def test_swav(biased):
    method, views = made("swav", queue=0), views_of("swav")
    bias = torch.linspace(-0.2, 0.2, 20, dtype=torch.float64) if biased else torch.zeros(())
    if biased:
        method.student.head.prototypes.bias = nn.Parameter(bias)
    found = method(views, NOW).loss
    prototypes = method.student.head.prototypes.vectors
    torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(20, dtype=torch.float64))
    # batch norm of the head sees all views together
    together = torch.cat(pooled(method.student, views, hide=True))
    each = (unit(method.student.head.projector(together)) @ prototypes.T + bias).chunk(len(together) // 8)
    total, count = 0.0, 0
    for t in range(2):
        q = (each[t] / 0.05).exp()
        for _ in range(3):
            q = q / q.sum(0) / 20
            q = q / q.sum(1, keepdim=True) / 8
        for s, other in enumerate(each):
            if s != t:
                total, count = total + cross_entropy(8 * q, (other / 0.1).log_softmax(-1)).mean(), count + 1
    torch.testing.assert_close(found, total / count)


def test_swavs_queue_waits_for_its_epoch_and_widens_what_is_balanced():
    method, views = made("swav", queue=16, queue_from=1), views_of("swav")
    queue = method.objectives[0].queue
    method(views, NOW)
    assert queue.filled == 0
    later = Progress(5, 10, 2)
    for other in (views_of("swav", step=1), views_of("swav", step=2)):
        method(other, later)
    assert queue.full
    plain = made("swav", queue=0)
    plain.load_state_dict(method.state_dict(), strict=False)
    assert method(views, later).loss != plain(views, later).loss


def test_pmsn():
    prior = PowerLaw(0.5)
    method, views = made("pmsn", prior=prior, entropy_weight=0.2), views_of("pmsn")
    found = method(views, NOW)
    head, shared = method.student.head, unit(method.student.head.prototypes.vectors)
    assert method.teacher.head.prototypes is head.prototypes
    anchors = torch.cat(pooled(method.student, views[1:], hide=True))
    target = torch.cat(pooled(method.teacher, views[:1], hide=False))
    p = (unit(head.projector(anchors)) @ shared.T / 0.1).softmax(-1)
    q = (unit(method.teacher.head.projector(target)) @ shared.T / 0.1).softmax(-1) ** 4  # sharpened by T = 0.25
    q = q / q.sum(1, keepdim=True)
    for _ in range(3):
        q = q / q.sum(0) * prior(20)
        q = q / q.sum(1, keepdim=True)
    ce = cross_entropy(q.repeat(len(p) // len(q), 1), p.log()).mean()
    mean = p.mean(0)
    kl = (mean * (mean / prior(20)).log()).sum()
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(found.loss, ce + 5 * kl + 0.2 * entropy)


def test_msn_is_pmsn_with_a_uniform_prior():
    one, other = made("msn"), made("pmsn", prior=Uniform(), match_weight=1.0)
    assert torch.equal(one(views_of("msn"), NOW).loss, other(views_of("msn"), NOW).loss)


def test_pmsns_targets_may_have_another_prior():
    method = made("pmsn", prior=PowerLaw(1.0), target_prior=Uniform(), balancer=lambda pi: Sinkhorn(pi, iterations=200))
    targets = method(views_of("pmsn"), NOW).clusters["cls"].targets
    torch.testing.assert_close(targets.mean(), Uniform()(20), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("variant", "projector"), [("paper", 0.5), ("code", 1 / 9)])
def test_excbs_pairs(variant, projector):
    first, second = excb_pairs(2, 8, variant)
    assert first.sum() == pytest.approx(projector)
    assert first.sum() + second.sum() == pytest.approx(1)
    assert first[0, 0] == first[1, 1] == 0
    assert (first[:, 2:] > 0).all() == (variant == "paper")
    assert len(second.unique()) == 1


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_excb(variant):
    method, views = made("excb", variant=variant), views_of("excb")
    found = method(views, NOW).loss
    head, w = method.student.head, unit(method.student.head.prototypes.vectors)
    projections = head.projector(torch.cat(pooled(method.student, views, hide=True)))
    teacher = method.teacher.head.projector(torch.cat(pooled(method.teacher, views[:1], hide=False)))
    cosines = unit(teacher) @ unit(method.teacher.head.prototypes.vectors).T
    # all clusters begin equally large: nothing is balanced yet, but the winner gets its hundredth part more
    cosines = torch.where(cosines == cosines.amax(1, keepdim=True), (1.01 * cosines).clamp(-1, 1), cosines)
    q = (cosines / 0.04).softmax(-1).chunk(2)
    z_h = (unit(projections) @ w.T / 0.1).log_softmax(-1).chunk(len(projections) // 8)
    z_g = (unit(head.predictor(projections)) @ w.T / 0.1).log_softmax(-1).chunk(len(projections) // 8)
    views_count = len(z_h)
    used = range(views_count) if variant == "paper" else range(2)
    h = [cross_entropy(q[t], z_h[s]).mean() for t in range(2) for s in used if s != t]
    g = [cross_entropy(q[t], z_g[s]).mean() for t in range(2) for s in range(views_count)]
    wanted = sum(h) / len(h) / 2 + sum(g) / len(g) / 2 if variant == "paper" else sum(h + g) / len(h + g)
    torch.testing.assert_close(found, wanted)


def test_excb_starts_from_k_means():
    method = made("excb", kmeans_images=40)
    before = method.student.head.prototypes.vectors.clone()
    taken = []

    def batches():
        for i in range(100):
            taken.append(i)
            made_batch = batch("excb", step=i)
            yield replace(made_batch, views=tuple(replace(v, images=v.images.double()) for v in made_batch.views))

    method.prepare(batches())
    assert len(taken) == 5  # of 8 images each
    vectors = method.student.head.prototypes.vectors
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(vectors, method.teacher.head.prototypes.vectors)
    assert not torch.equal(vectors, before)
    with pytest.raises(ValueError, match="between 1 and 16 prototypes in 16 embeddings"):
        made("excb", kmeans_images=16).prepare(batches())


def test_spherical_kmeans_finds_separate_groups_and_leaves_none_empty():
    generator = torch.Generator().manual_seed(0)
    means = torch.eye(6)[:4].repeat_interleave(25, 0)
    x = means + 0.05 * torch.randn(100, 6, generator=generator)
    for seed in range(5):
        centers = spherical_kmeans(x, 12, seed=seed)
        counts = (unit(x) @ centers.T).argmax(1).bincount(minlength=12)
        assert counts.min() > 0
        groups = (centers[:, :4]).argmax(1)
        assert groups.unique().numel() == 4
        torch.testing.assert_close(centers.norm(dim=1), torch.ones(12))
    moved = spherical_kmeans(x, 12, seed=0, iterations=200)
    sums = torch.zeros(12, 6).index_add_(0, (unit(x) @ moved.T).argmax(1), unit(x))
    torch.testing.assert_close(unit(sums), moved)  # a fixed point


def test_simclr_and_simsiam():
    method, views = made("simclr"), views_of("simclr")
    z = unit(method.student.projector(torch.cat(pooled(method.student, views, hide=False))))
    logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    partner = torch.arange(16).roll(8)
    torch.testing.assert_close(method(views, NOW).loss, F.cross_entropy(logits, partner))

    method, views = made("simsiam"), views_of("simsiam")
    z = [method.student.projector(x) for x in pooled(method.student, views, hide=False)]
    p = [method.student.predictor(x) for x in z]
    wanted = -(F.cosine_similarity(p[0], z[1]).mean() + F.cosine_similarity(p[1], z[0]).mean()) / 2
    torch.testing.assert_close(method(views, NOW).loss, wanted)


def test_mmcr():
    method, views = made("mmcr"), views_of("mmcr")
    z = unit(method.student.projector(torch.cat(pooled(method.student, views, hide=False)))).unflatten(0, (2, 8))
    extents = torch.stack([torch.linalg.svdvals(image).sum() for image in z.transpose(0, 1)])
    wanted = -torch.linalg.svdvals(z.mean(0)).sum() + 0.1 * extents.mean()
    torch.testing.assert_close(method(views, NOW).loss, wanted)


def test_mae_draws_what_was_left_out():
    method, views = made("mae"), views_of("mae")
    keep, images = views[0].keep[0], views[0].images[0]
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    drawn = method.student.decoder(method.student.backbone(images, keep=keep), keep)
    hidden = torch.stack([torch.tensor([i not in row for i in range(16)]) for row in keep.tolist()])
    wanted = ((drawn - patches) ** 2).mean(-1)[hidden].mean()
    torch.testing.assert_close(method(views, NOW).loss, wanted)


def test_the_decoder_knows_where_patches_lie():
    """Kept patches in another order, with the same places, give the same picture."""
    method, views = made("mae"), views_of("mae")
    keep, images = views[0].keep[0], views[0].images[0]
    network = method.student
    first = network.decoder(network.backbone(images, keep=keep), keep)
    second = network.decoder(network.backbone(images, keep=keep.flip(1)), keep.flip(1))
    torch.testing.assert_close(first, second)


def test_data2vec_targets_are_the_teachers_last_blocks():
    method, views = made("data2vec"), views_of("data2vec")
    mask, images = views[0].mask[0], views[0].images[0]
    method.eval()
    blocks = method.teacher(images, blocks=2).blocks
    standard = [F.layer_norm(x[:, 1:], (24,)) for x in blocks]
    target = F.layer_norm(sum(standard) / 2, (24,))
    guess = method.student.regression(method.student.backbone(images, mask=mask).patches)
    wanted = F.smooth_l1_loss(guess, target, beta=2.0, reduction="none").mean(-1)[mask].mean()
    torch.testing.assert_close(method(views, NOW).loss, wanted, rtol=1e-5, atol=1e-6)


def test_drop_path_is_the_students_alone():
    backbone = backbones.vit("tiny", patch=4, image_size=16, dims=24, depth=3, heads=2, drop_path=0.5)
    method = methods.dino(backbone, num_prototypes=5, hidden=8, bottleneck=4).train()
    images = torch.randn(6, 3, 16, 16)
    assert not torch.equal(method.backbones[0](images).pooled, method.backbones[0](images).pooled)
    assert torch.equal(method.backbones[1](images).pooled, method.backbones[1](images).pooled)
