"""What holds for every method: gradients, teachers, state, reproducibility, exchangeable parts, errors."""

import copy
import re
from functools import partial

import pytest
import torch

from method_cases import CASES, CLUSTERING, SMALL, batch, tiny_beit, tiny_resnet, tiny_vit
from prototile import backbones, methods, views
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Sinkhorn,
)
from prototile.methods import METHODS, JointEmbedding, Method, Prototypical
from prototile.priors import Explicit, PowerLaw, Uniform
from prototile.schedules import Constant, Progress
from prototile.types import Batch

NOW = Progress(0, 10, 2)
BALANCERS = {
    "centering": Centering,
    "probability centering": ProbabilityCentering,
    "sinkhorn": Sinkhorn,
    "explicit": ExplicitBalancing,
    "none": partial(Sinkhorn, iterations=0),
}


def made(name: str, **options) -> Method:
    torch.manual_seed(1)
    return CASES[name].make(**options)


def step(method: Method, batch: Batch, progress: Progress, lr: float = 0.1) -> torch.Tensor:
    terms = method(batch.views, progress)
    terms.loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            if p.grad is not None:
                p -= lr * p.grad
                p.grad = None
    method.after_step(progress)
    return terms.loss.detach()


@pytest.fixture(params=CASES)
def name(request) -> str:
    return request.param


def test_every_method_has_a_case():
    assert list(CASES) == list(METHODS)


def test_gradients_reach_the_student_alone(name):
    method = made(name)
    terms = method(batch(name).views, NOW)
    terms.loss.backward()
    assert terms.loss.isfinite()
    assert all(x.isfinite() and not x.requires_grad for x in terms.parts.values())
    trained = {id(p) for p in method.student.parameters() if p.requires_grad}
    for key, p in method.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, key
            assert p.grad.abs().sum() > 0, key
            assert id(p) in trained, key
        else:
            assert p.grad is None, key


def test_the_weighted_parts_add_up(name):
    method = made(name)
    terms = method(batch(name).views, NOW)
    loss = float(terms.loss.detach())
    weights = {"match_prior": 5.0 if name == "pmsn" else 1.0, "koleo_data": 0.1}
    weights |= {"invariance": 25.0, "variance": 25.0, "extent": 0.1}
    if name == "esvit":
        weights = {"cross_entropy": 0.5, "cross_entropy_regions": 0.5}
    total = sum(weights.get(part, 1.0) * float(x) for part, x in terms.parts.items())
    assert loss == pytest.approx(total, rel=1e-5)


def test_the_teacher_is_a_moving_average_of_parameters(name):
    method = made(name)
    networks = [method.student, getattr(method, "teacher", None)]
    if networks[1] is None:
        assert len(method.backbones) == 1
        return
    teacher, student = method.backbones[1], method.backbones[0]
    assert method.backbone is teacher
    before = [p.clone() for p in teacher.parameters()]
    method.momentum = Constant(0.9)
    step(method, batch(name), NOW)
    for old, new, goal in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * goal.detach())
    assert any(not torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))


def test_state_goes_round(name):
    method = made(name)
    for i in range(2):
        step(method, batch(name, step=i), Progress(i, 10, 2))
    other = CASES[name].make()
    other.load_state_dict(method.state_dict())
    wanted, found = (m(batch(name, step=2).views, Progress(2, 10, 2)).loss for m in (method, other))
    assert torch.equal(wanted, found)


def test_the_same_seed_gives_the_same_numbers(name):
    losses = [[step(m, batch(name, step=i), Progress(i, 10, 2)) for i in range(3)] for m in (made(name), made(name))]
    assert losses[0] == losses[1]
    assert len({float(x) for x in losses[0]}) == 3


def test_evaluation_leaves_all_state_alone(name):
    method = made(name).eval()
    before = {key: x.clone() for key, x in method.state_dict().items()}
    method(batch(name).views, NOW)
    for key, x in method.state_dict().items():
        if not key.endswith("calls"):  # KoLeo counts its partitions
            assert torch.equal(x, before[key]), key


def test_a_method_can_be_copied(name):
    method = made(name)
    twin = copy.deepcopy(method)
    assert step(method, batch(name), NOW) == step(twin, batch(name), NOW)
    assert torch.equal(
        torch.cat([p.flatten() for p in method.parameters()]), torch.cat([p.flatten() for p in twin.parameters()])
    )


def test_half_precision_gives_a_like_loss(name):
    method = made(name)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method(batch(name).views, NOW).loss
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(name)(batch(name).views, NOW).loss, rtol=0.3, atol=0.2)


def test_clusters_are_constants_that_follow_the_prior(name):
    terms = made(name)(batch(name).views, NOW)
    assert bool(terms.clusters) == CASES[name].prototypes
    assert not terms.embeddings.requires_grad
    for clusters in terms.clusters.values():
        assert clusters.prior.sum() == pytest.approx(1)
        torch.testing.assert_close(clusters.prototypes.norm(dim=1), torch.ones(20))
        for assignments in (clusters.student, clusters.targets):
            assert not assignments.embeddings.requires_grad
            assert assignments.held is None
            torch.testing.assert_close(assignments.probabilities().sum(1), torch.ones(len(assignments)))


def test_the_defaults_are_of_paper_scale(name):
    backbone = "resnet" if name in ("swav", "simclr", "vicreg", "barlow_twins", "simsiam", "mmcr") else "vit"
    with torch.device("meta"):
        method = METHODS[name](
            backbones.resnet("resnet50") if backbone == "resnet" else backbones.vit("tiny", mask_token=True)
        )
    counts = {"dino": 65536, "ibot": 8192, "dinov2": 65536, "msn": 1024, "pmsn": 8142, "excb": 65536, "swav": 3000}
    counts |= {"dino_vmf": 65536, "ibot_vmf": 8192, "esvit": 65536}
    if CASES[name].prototypes:
        assert isinstance(method, Prototypical)
        assert method.student.prototypes[0].vectors.shape == (counts[name], 128 if name == "swav" else 256)
    else:
        assert name not in counts


def test_the_table_of_methods_is_true():
    rows = re.findall(r"^    (\w+) +(\w+) +(teacher|itself|pixels|-) +(\w+|-)  +(\S.*)$", methods.__doc__, re.MULTILINE)
    assert [row[0] for row in rows] == list(METHODS)
    for name, family, source, balancer, predicts in rows:
        method = made(name)
        assert type(method).__name__ == family
        assert (len(method.backbones) == 2) == (source == "teacher")
        if isinstance(method, Prototypical):
            assert {type(each.balancer).__name__ for each in method.objectives} == {balancer}
            tokens = {"regions", "hidden patches"} if len(method.objectives) == 2 else set()
            assert {token for token in ("regions", "hidden patches") if token in predicts} <= tokens
            assert ("regions" in predicts or "hidden patches" in predicts) == bool(tokens)
            assert (method.anchors_apart and "target view" in predicts) or not method.anchors_apart
            own = [add_on.name for add_on in method.add_ons.each]
            assert own == ["koleo_data"] * predicts.endswith("koleo_data")


# ------------------------------------------------------------------------------------------------ exchangeable parts
@pytest.mark.parametrize("balancer", BALANCERS)
@pytest.mark.parametrize("name", CLUSTERING)
def test_any_balancer_and_prior_in_any_clustering_method(name, balancer):
    if name.endswith("vmf") and balancer == "explicit":
        with pytest.raises(ValueError, match="works on cosines"):
            made(name, balancer=BALANCERS[balancer])(batch(name).views, NOW)
        return
    for prior in (Uniform(), PowerLaw(0.5), Explicit([2 / 22] * 2 + [1 / 22] * 18)):
        method = made(name, balancer=BALANCERS[balancer], prior=prior, match_weight=0.5)
        terms = method(batch(name).views, NOW)
        terms.loss.backward()
        assert terms.loss.isfinite()
        assert terms.parts["match_prior"] >= 0
        torch.testing.assert_close(terms.clusters["cls"].prior, prior(20))
        found = method.objectives[0].balancer
        assert isinstance(found, Balancer)


@pytest.mark.parametrize("add_on", methods.ADD_ONS)
def test_any_add_on(name, add_on):
    if not issubclass(type(made(name)), Prototypical | JointEmbedding):
        return
    if name == "dinov2" and add_on == "koleo_data":
        with pytest.raises(ValueError, match="may be given once: koleo_data"):
            made(name, add_ons=[methods.koleo_data()])
        return
    extra = methods.ADD_ONS[add_on]()
    plain, method = made(name), made(name, add_ons=[extra])
    if add_on == "koleo_proto" and not CASES[name].prototypes:
        with pytest.raises(ValueError, match="koleo_proto is for methods with prototypes"):
            method(batch(name).views, NOW)
        return
    terms = method(batch(name).views, NOW)
    terms.loss.backward()
    assert terms.parts[extra.name].isfinite()
    wanted = plain(batch(name).views, NOW).loss + extra.weight * terms.parts[extra.name]
    torch.testing.assert_close(terms.loss, wanted)


def test_koleo_proto_is_one_term_for_each_set_of_prototypes():
    for shared, count in (("prototypes", 1), ("projector", 2), ("nothing", 2)):
        method = made("ibot", shared=shared, add_ons=[methods.koleo_proto()])
        assert len(method.student.prototypes) == count
        term = method(batch("ibot").views, NOW).parts["koleo_proto"]
        alone = [methods.koleo_proto().regularizer(x.vectors) for x in method.student.prototypes]
        torch.testing.assert_close(term, torch.stack(alone).sum().detach())


# ------------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("name", ["ibot", "dinov2", "esvit", "mae", "data2vec"])
def test_methods_of_patches_refuse_other_backbones(name):
    with pytest.raises(ValueError, match="a ResNet has none: use a transformer"):
        METHODS[name](tiny_resnet())


@pytest.mark.parametrize(
    ("name", "augmentation", "message"),
    [
        ("dino", views.preset("mae"), "compares views of an image, and the augmentation makes one"),
        ("msn", views.preset("simclr"), "a group of target views and one of anchors"),
        ("ibot", CASES["dino"].augmentation, "masks none: use prototile.views.preset..ibot"),
        ("ibot", CASES["mae"].augmentation, "makes one"),
        ("ibot", views.preset("ibot"), "patches of 16 pixels, and the backbone has patches of 4"),
        ("simclr", views.preset("dino"), "compares two views of one size.*2 of 224 pixels, 8 of 96 pixels"),
        ("vicreg", views.preset("mae"), "makes 1 of 224"),
        ("mae", views.preset("data2vec"), "with patches of 4 pixels left out"),
        ("data2vec", CASES["mae"].augmentation, "with patches of 4 pixels masked"),
    ],
)
def test_views_that_do_not_fit_are_refused(name, augmentation, message):
    with pytest.raises(ValueError, match=message):
        made(name).check(augmentation)


def test_views_that_fit_are_not(name):
    made(name).check(CASES[name].augmentation)


def test_bad_settings(unchecked):
    for make, message in (
        (lambda: made("esvit", region_weight=2.0), "lies in"),
        (lambda: made("swav", queue=-1), "must not be negative"),
        (lambda: made("ibot", num_patch_prototypes=7), "choose shared='projector'"),
        (lambda: made("excb", variant="mine"), "variant must be"),
        (lambda: made("dino", student_temperature=0.0), "must be positive"),
        (lambda: methods.koleo_proto(-1.0), "must not be negative"),
        (lambda: methods.data2vec(tiny_beit()), "the last 1 to 2 blocks of this backbone, not 6"),
        (lambda: made("dino", prior=Explicit([0.5, 0.5])), "20 prototypes but the prior has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_masks_that_are_missing_are_named():
    plain = batch("dino").views
    with pytest.raises(ValueError, match="the first views have no mask"):
        made("ibot")(plain, NOW)
    for name in ("mae", "data2vec"):
        with pytest.raises(ValueError, match="give them `masks`"):
            made(name)(plain, NOW)


def test_a_mask_of_another_grid_is_refused(unchecked):
    method = CASES["ibot"].make(tiny_vit(mask_token=True), **(SMALL | {"num_prototypes": 5}))
    coarse = batch("ibot").views
    with pytest.raises(ValueError, match="mask"):
        method((type(coarse[0])(coarse[0].images, coarse[0].mask[..., :4]), *coarse[1:]), NOW)
