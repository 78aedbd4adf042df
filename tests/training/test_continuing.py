"""Continuing: what a file holds is what goes on, published numbers, the guard, rebuilt heads, resuming, bad input."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from foreign_cases import CASES, _simsiam, _vicreg, filled, vit
from prototile.backbones import ViT, resnet
from prototile.backbones import vit as backbone_vit
from prototile.checkpoints import export, load, load_backbone, native
from prototile.data import Loader
from prototile.data.source import Arrays
from prototile.evaluation import Crop
from prototile.methods import JointEmbedding, Prototypical, dino, swav
from prototile.regularizers import EffectiveEntropy
from prototile.schedules import Constant, Cosine, Progress
from prototile.sphere import normalize
from prototile.training.continuing import (
    E2MC,
    Bench,
    Judge,
    KeepBest,
    add_ons,
    continue_training,
    planned,
    restore,
    views_for,
)
from prototile.training.continuing.criteria import add_
from prototile.training.continuing.described import describe
from prototile.training.continuing.measuring import DRAWS, Measures
from prototile.training.continuing.rebuilding import Unfreezing, start_prototypes_, take_state_
from prototile.training.continuing.recipe import continued, optimization_for, warmed
from prototile.training.continuing.restoring import parts_of
from prototile.training.continuing.result import Continued
from prototile.training.optimization import Optimization, Special
from prototile.training.run import fit
from training_cases import CASES as RUNS
from training_cases import SIDE, loader, train

SIZE = 32
TEMPERATURE = 0.1
END = Progress(10, 10)

# file -> the method that goes on, and whether the file has a teacher
METHODS = {
    "vicreg": ("vicreg", False),
    "simsiam": ("simsiam", False),
    "swav": ("swav", False),
    "deepcluster-v2": ("swav", False),
    "solo-learn swav": ("swav", False),
    "vissl swav": ("swav", False),
    "dino vit": ("dino", True),
    "dino resnet, batch norm in the head": ("dino", True),
    "ibot vit, separate prototypes": ("ibot", True),
    "ibot swin": ("ibot", True),
    "esvit swin": ("esvit", True),
    "esvit resnet": ("dino", True),
    "dinov2, blocks in chunks, gated, two heads": ("dinov2", False),
    "msn": ("msn", True),
    "excb vit": ("excb", True),
    "excb resnet": ("excb", True),
    "solo-learn dino": ("dino", True),
    "lightly msn": ("msn", True),
}


def saved(tmp_path, contents, name="file.pth"):
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def drawn(count=60, classes=3, size=SIZE, *, labelled=True):
    """Images whose colour tells their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 100, (count, size, size, 3), np.uint8)
    images[np.arange(count), ..., labels] += 100
    return Arrays(images, labels=labels if labelled else None, name="drawn")


def batch_for(name, patch, count=6):
    views, _ = views_for(name, SIZE, patch)
    return next(iter(Loader(drawn(count), views, count, workers=0, epochs=1)))


# ------------------------------------------------------------------------------------------------------ restoring
@pytest.mark.parametrize("case", METHODS)
def test_what_the_file_holds_goes_on(case, tmp_path):
    name, taught = METHODS[case]
    path = saved(tmp_path, CASES[case][0]())
    restored = restore(path)
    assert (restored.name, restored.rebuilt) == (name, ())
    kinds = ("student", "teacher") if taught else ("evaluated", "evaluated")
    files = [load(path, network=kind) for kind in kinds[: len(restored.method.backbones)]]
    method = restored.method.eval()
    networks = [method.student] if isinstance(method, JointEmbedding) or method.teacher is None else None
    networks = [method.student, method.teacher] if networks is None else networks
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for network, file in zip(networks, files, strict=True):
            features = file.backbone(images)
            found = network.backbone(images)
            assert torch.equal(found.pooled, features.pooled)
            if isinstance(method, JointEmbedding):
                projected = file.projector(features.pooled)
                assert torch.equal(network.projector(found.pooled), projected)
                if file.predictor is not None:
                    assert torch.equal(network.predictor(projected), file.predictor(projected))
                continue
            rows, head = network.head.projector(found.pooled), file.heads["cls"]
            assert torch.equal(rows, head.projector(features.pooled))
            wanted = head.assignments(rows, TEMPERATURE).probabilities()
            assert torch.equal(network.head.prototypes(rows, TEMPERATURE).probabilities(), wanted)
            if name == "excb":
                assert torch.equal(network.head.predictor(rows), file.predictor(rows))
            if network.patch_head is not None:
                rows = features.patches.flatten(0, 1)
                wanted = file.heads["patches"](rows, TEMPERATURE).probabilities()
                assert torch.equal(network.patch_head(rows, TEMPERATURE).probabilities(), wanted)
    method.train()
    criterion = "e2mc"
    add_(method, criterion, name)
    terms = method(batch_for(name, method.backbones[0].patch).views, Progress(0, 10))
    assert {"e2mc"} <= set(terms.parts)
    terms.loss.backward()
    student = {name: p for name, p in method.named_parameters() if p.requires_grad}
    silent = [name for name, p in student.items() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("student.") for name in student)
    assert all("mask_token" in name or "patch_embed" in name for name in silent), silent  # of BEiT-like padding only


def test_a_centre_goes_on(tmp_path):
    contents = CASES["dino vit"][0]()
    contents["dino_loss"]["center"] = torch.arange(12.0)[None]
    method = restore(saved(tmp_path, contents)).method
    assert torch.equal(method.objectives[0].balancer.center, torch.arange(12.0, dtype=torch.float64))


def test_sizes_of_clusters_go_on(tmp_path):
    contents = CASES["excb vit"][0]()
    contents["criterion"]["center"] = torch.arange(12.0)[None]
    sizes = restore(saved(tmp_path, contents)).method.objectives[0].balancer.sizes
    assert torch.allclose(sizes, torch.arange(12.0, dtype=torch.float64) / 66)


def test_schedules_stand_where_training_left_them(tmp_path):
    method = restore(saved(tmp_path, CASES["dino vit"][0]())).method
    assert method.objectives[0].temperatures.teacher == Constant(0.07)
    assert method.momentum == Constant(0.996)


def test_a_teacher_alone_becomes_both(tmp_path):
    restored = restore(saved(tmp_path, CASES["dinov2, blocks in chunks, gated, two heads"][0]()))
    student, teacher = restored.method.student.state_dict(), restored.method.teacher.state_dict()
    assert restored.network == "teacher"
    assert all(torch.equal(x, teacher[name]) for name, x in student.items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of this package that was made in Python."""
    return train("vit", tmp_path_factory.mktemp("runs") / "vit")


SWAV = Optimization(lr=Cosine(1.0, 0.01), optimizer="larc", roles={"prototypes": Special(freeze_steps=3)})


@pytest.fixture(scope="module")
def swav_run(tmp_path_factory):
    """A run that says which method it is of, and not how its backbone was built."""
    torch.manual_seed(0)
    backbone = resnet("resnet18", stem="cifar", width=4)
    method = swav(backbone, num_prototypes=12, hidden=16, bottleneck=8, queue=32, queue_from=1)
    out = tmp_path_factory.mktemp("runs") / "swav"
    config = {"method": {"class_path": "prototile.methods.swav", "init_args": {}}}
    batches = loader("swav")
    return fit(method, batches, optimization=SWAV, epochs=3, out=out, accelerator="cpu", config=config)


@pytest.mark.parametrize("which", ["run", "swav_run"])
def test_a_run_goes_on_with_its_whole_state(which, request):
    run = request.getfixturevalue(which)
    restored = restore(run.folder)
    assert restored.name == ("dino" if which == "run" else "swav")
    old, new = run.method.state_dict(), restored.method.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    made = RUNS["vit"][2] if which == "run" else SWAV
    plan = planned(restored)
    assert plan.optimizer == made.optimizer
    assert plan.lr(END) == pytest.approx(0.01 * made.lr.base)
    assert plan.weight_decay(END) == made.weight_decay(END)
    assert not any(role.freeze_epochs or role.freeze_steps for role in plan.roles.values())
    assert restored.optimizer is not None


# ------------------------------------------------------------------------------------------------- published numbers
@pytest.mark.parametrize(
    ("method", "beta", "gamma", "space"),
    [("vicreg", 1000, 100, "hypercube"), ("swav", 1, 25, "hypersphere"), ("simsiam", 0.001, 0.01, "hypersphere")],
)
def test_e2mc_is_the_published_one(method, beta, gamma, space):
    (added,) = add_ons("e2mc", method)
    x = 3 * torch.randn(2, 40, 5, dtype=torch.float64)
    u = 0.5 * (1 + torch.erf(x / math.sqrt(2))) if space == "hypersphere" else 1 / (1 + (-x).exp())
    loss = 0.0
    for view in u:  # appendix B, and the entropies' mean as in the code
        ordered, m = view.sort(0).values, round(math.sqrt(40))
        entropy = (41 / m * (ordered[m:] - ordered[:-m]) + 2**-23).log().mean()
        k = torch.cov(view.T)
        loss += -beta * entropy / 2 + gamma * (k.square().sum() - k.diagonal().square().sum()) / 5
    assert added.of == "projections"
    assert added([], torch.zeros(2, 40, 3), x) * added.weight == pytest.approx(float(loss), rel=1e-9)


def test_rivals_have_the_published_weights():
    x = torch.randn(8, 30, 6, dtype=torch.float64)
    unit = normalize(x.flatten(0, 1)).view(x.shape)
    first = unit[:2]
    (vcreg,), (auh,), (mmcr,), (koleo,) = (add_ons(name, "swav") for name in ("vcreg", "auh", "mmcr", "koleo-proto"))
    covariances = [torch.cov(view.T) for view in first]
    hinge = sum((6**-0.5 - (k.diagonal() + 1e-4).sqrt()).relu().mean() for k in covariances) / 2
    off = sum((k.square().sum() - k.diagonal().square().sum()) / 6 for k in covariances)
    features = torch.zeros(2, 30, 3)
    assert vcreg.weight * vcreg([], features, x) == pytest.approx(float(0.1 * hinge + 0.001 * off), rel=1e-6)
    pairs = [torch.pdist(view).square() for view in first]
    wanted = 0.5 * sum((-2 * d).exp().mean().log() for d in pairs) / 2
    assert auh.weight * auh([], features, x) == pytest.approx(float(wanted), rel=1e-6)
    nuclear = torch.linalg.matrix_norm(unit.mean(0), "nuc")  # over all views
    assert mmcr.weight * mmcr([], features, x) == pytest.approx(float(-0.005 * nuclear), rel=1e-6)
    assert (koleo.weight, koleo.of, koleo.regularizer.partition) == (0.1, "prototypes", 2048)


def test_coefficients_can_be_others():
    (added,) = add_ons("e2mc", "vicreg", {"beta": 5, "space": "hypersphere"})
    assert isinstance(added.regularizer, EffectiveEntropy)
    assert (added.regularizer.beta, added.regularizer.gamma) == (5, E2MC["vicreg"][1])
    assert add_ons("none", "swav") == []


def test_a_criterion_takes_the_place_of_the_same_one(swav_run):
    method = restore(swav_run.folder).method
    add_(method, "koleo-proto", "swav", {"weight": 3})
    add_(method, "koleo-proto", "swav", {"weight": 5})
    add_(method, "e2mc", "swav")
    assert [(each.name, each.weight) for each in method.add_ons.each] == [("koleo_proto", 5), ("e2mc", 1.0)]


@pytest.mark.parametrize(
    ("case", "rate", "kind"), [("vicreg", 0.003, "lars"), ("swav", 0.001, "larc"), ("simsiam", 0.001, "sgd")]
)
def test_learning_rates_are_the_published_ones(case, rate, kind, tmp_path):
    plan = planned(restore(saved(tmp_path, CASES[case][0]())))
    restored = restore(tmp_path / "file.pth")
    optimizer = plan.build(restored.method, 512)
    assert plan.optimizer == kind
    for step in (0, 5, 10):
        plan.set_values_(optimizer, Progress(step, 10, 10))
        rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
        assert rates.pop("predictor", 0.1) == pytest.approx(0.1)  # SimSiam's is fixed
        assert list(rates.values()) == pytest.approx([rate])
        assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.0, 1e-6, 1e-4}


def test_other_rates_are_a_hundredth_of_the_base_rate(tmp_path):
    dino = planned(restore(saved(tmp_path, CASES["dino vit"][0]())))
    assert (dino.lr(END), dino.lr_scaling, dino.weight_decay(END)) == (pytest.approx(5e-6), "linear", 0.4)
    assert planned(restore(tmp_path / "file.pth"), lr=0.3).lr(END) == 0.3
    convolutional = optimization_for("dino", restore(saved(tmp_path, CASES["swav"][0]())).method.backbones[0])
    assert (convolutional.optimizer, convolutional.lr(END)) == ("lars", pytest.approx(0.003))


def test_a_continued_rate_is_not_reduced_again():
    own = Optimization(lr=Cosine(0.2, 0.0), weight_decay=Cosine(0.04, 0.4))
    once = continued(own, 30)
    assert (once.lr(END), once.weight_decay(END)) == pytest.approx((0.002, 0.4))
    assert isinstance(once.lr, Constant)
    assert continued(once, 10, again=True).lr == once.lr
    assert warmed(once, 2).lr(Progress(19, 100, 10)) == pytest.approx(0.2)
    assert warmed(once, 2).lr(Progress(20, 100, 10)) == pytest.approx(0.002)


# ------------------------------------------------------------------------------------------------------ whole runs
def going_on(path, out, *, source=None, keep="best", lr=None, method=None, options=None, judge=None, batch=20, **more):
    """Continues on the drawn images: three batches an epoch."""
    source = drawn() if source is None else source
    restored = restore(path, method=method, options=options)
    size = SIDE if restored.layout == "prototile" else SIZE
    views = restored.views or views_for(restored.name, size, restored.method.backbones[0].patch)[0]
    crop = Crop(size)
    settings = {"criterion": "e2mc", "epochs": 2, "accelerator": "cpu"} | more
    epochs = settings["epochs"] + (settings.get("warmup", 1) if restored.rebuilt else 0)
    return continue_training(
        restored,
        lambda: Loader(source, views, batch, workers=0, epochs=epochs),
        bench=Bench.of(source, None, crop, "hypersphere"),
        guard=lambda folder: KeepBest(judge or Judge.of(source, crop), folder),
        out=out,
        optimization=planned(restored, settings.get("warmup", 1), lr),
        keep=keep,
        **settings,
    )


def weights_of(folder):
    contents = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {name.removeprefix("method."): x for name, x in contents["state_dict"].items()}


def test_without_criterion_and_rate_nothing_changes(tmp_path, run):
    result = going_on(run.folder, tmp_path / "run", criterion="none", lr=0.0, epochs=1)
    assert result.before == result.after
    assert (result.kept, result.worse, result.criterion, result.coefficients) == (0, False, "none", {})
    assert "made nothing better" in result.verdict
    base = run.method.state_dict()
    after = weights_of(tmp_path / "run")
    assert all(torch.equal(base[name], after[name]) for name in base if "center" not in name)


def test_before_is_what_the_file_holds(tmp_path, swav_run):
    """Whatever happens in the steps."""
    result = going_on(swav_run.folder, tmp_path / "run", limit_steps=1)
    restored = restore(swav_run.folder)
    bench = Bench.of(drawn(), None, Crop(SIDE), "hypersphere")
    assert result.before == bench(restored.method)
    base = load(swav_run.folder)
    parts = parts_of(restored.method)
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        features = base.backbone(images).pooled
        assert torch.equal(parts["backbone"].eval()(images).pooled, features)
        assert torch.equal(parts["projector"].eval()(features), base.heads["cls"].projector(features))


def test_a_run_leaves_what_others_do(tmp_path, run):
    out = tmp_path / "run"
    result = going_on(run.folder, out, checkpoint="base")
    told = json.loads((out / "continued.json").read_text())
    assert told["before"]["entropy"] == pytest.approx(result.before.entropy, rel=1e-6)
    assert told["after"]["images"] == 12
    assert told["coefficients"] == {
        "weight": 1.0,
        "beta": 1.0,
        "gamma": 25.0,
        "space": "hypersphere",
        "reduction": "mean",
    }
    assert "the optimiser goes on with the file's state" in told["said"][-1]
    assert set(result.scores) == {0, 1, 2}
    assert (out / "train.log").exists()
    images = torch.randn(2, 3, SIDE, SIDE)
    kept = load_backbone(out / "model")
    assert torch.equal(kept(images).pooled, load(out).backbone(images).pooled)
    text = str(result)
    assert text.startswith("base: prototile, student and teacher; dino, criterion e2mc")
    assert "linear, 1% of the labels" in text
    again = restore(out)
    assert again.continued
    assert planned(again).lr(END) == pytest.approx(planned(restore(run.folder)).lr(END))


def test_continuing_raises_entropy(tmp_path, swav_run):
    result = going_on(swav_run.folder, tmp_path / "run", keep="last", lr=0.1, epochs=4, coefficients={"beta": 10})
    assert result.after.entropy > result.before.entropy
    assert result.kept == 4
    assert "the last weights are kept, as asked for" in result.verdict


class Falling(Judge):
    """A judge of whom every look is worth less, or as told."""

    told = iter(())

    def __call__(self, backbone):
        return next(self.told)


def judge_of(*scores):
    judge = Falling(drawn(), drawn(), Crop(SIDE))
    object.__setattr__(judge, "told", iter(scores))
    return judge


def test_the_best_weights_are_kept(tmp_path, run):
    out = tmp_path / "run"
    result = going_on(run.folder, out, lr=0.01, epochs=3, judge=judge_of(0.5, 0.7, 0.4, 0.6))
    assert (result.kept, result.worse, dict(result.scores)) == (1, False, {0: 0.5, 1: 0.7, 2: 0.4, 3: 0.6})
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 1
    assert all(torch.equal(best["state_dict"][name], x) for name, x in weights_of(out).items())
    final = torch.load(out / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(final[f"method.{name}"], x) for name, x in weights_of(out).items())
    assert result.last is not None


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.6, 0.6), 2), ((0.6, 0.6, 0.6), 0), ((0.6, 0.5), 0)])
def test_of_equals_the_last_but_not_the_beginning(tmp_path, run, scores, best):
    keeper = KeepBest(judge_of(*scores), tmp_path)
    for epoch in range(len(scores)):
        keeper.look(run.method, epoch, epoch)
        keeper.look(run.method, epoch, epoch)  # twice at one step is once
    assert keeper.best == torch.load(keeper.path, weights_only=True)["epoch"] == best


def test_what_made_it_worse_is_said_and_left_out(tmp_path, swav_run, caplog):
    """A learning rate that breaks everything."""
    out = tmp_path / "run"
    with caplog.at_level("WARNING"):
        result = going_on(swav_run.folder, out, lr=1e4, judge=None)
    assert result.worse
    assert result.kept == 0
    assert result.after == result.before
    assert "made it worse" in result.verdict or "broke off" in result.verdict
    assert result.verdict in caplog.text
    base, kept = load(swav_run.folder).backbone, load_backbone(out / "model", into=load(swav_run.folder).backbone)
    assert all(torch.equal(x, kept.state_dict()[name]) for name, x in base.state_dict().items())


def test_a_run_that_breaks_off_keeps_what_was_best(tmp_path, run):
    restored = restore(run.folder)
    views, crop = views_for("dino", SIDE, 4)[0], Crop(SIDE)
    restored.method.objectives[0].weight = math.nan
    result = continue_training(
        restored,
        Loader(drawn(), views, 20, workers=0, epochs=1),
        bench=Bench.of(drawn(), None, crop, "hypersphere"),
        guard=lambda folder: KeepBest(Judge.of(drawn(), crop), folder),
        out=tmp_path / "run",
        epochs=1,
        accelerator="cpu",
    )
    assert result.diverged is not None
    assert "broke off" in result.verdict
    assert result.after == result.before
    assert (tmp_path / "run" / "continued.json").exists()


def test_rankme_judges_where_there_are_no_labels(tmp_path, run):
    source = drawn(labelled=False)
    result = going_on(run.folder, tmp_path / "run", source=source, epochs=1)
    assert result.measure == "RankMe"
    assert result.before.knn is result.before.linear is None
    assert "linear" not in str(result)
    features = torch.linalg.svdvals(_features(run.folder, source).double())
    p = features / features.sum() + 1e-7
    assert result.scores[0] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-5)


def _features(path, source):
    from prototile.evaluation import extract

    return extract(load(path).backbone, source, size=SIDE).features


def test_killed_and_resumed_is_as_if_nothing_had_been(tmp_path, run):
    whole = going_on(run.folder, tmp_path / "a", epochs=2)
    going_on(run.folder, tmp_path / "b", epochs=2, limit_steps=4)
    parts = going_on(run.folder, tmp_path / "b", epochs=2, resume=True)
    assert (parts.before, parts.after, dict(parts.scores)) == (whole.before, whole.after, dict(whole.scores))
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    again = going_on(run.folder, tmp_path / "b", epochs=2, resume=True)  # it has ended
    assert (again.after, again.kept) == (whole.after, whole.kept)
    assert all(torch.equal(a[name], x) for name, x in weights_of(tmp_path / "b").items())


def test_another_base_is_not_resumed(tmp_path, run, swav_run):
    going_on(run.folder, tmp_path / "a", epochs=2, limit_steps=1)
    with pytest.raises(ValueError, match="criterion was 'e2mc' and is 'auh'"):
        going_on(run.folder, tmp_path / "a", epochs=2, criterion="auh", resume=True)


# ------------------------------------------------------------------------------------------------ what is rebuilt
REBUILT = {"num_prototypes": 6, "hidden": 16, "bottleneck": 8}


def test_missing_heads_are_rebuilt_and_said(tmp_path):
    path = saved(tmp_path, filled(vit()))
    result = going_on(path, tmp_path / "run", options=REBUILT, epochs=1, limit_steps=3)
    assert result.rebuilt == ("projector", "prototypes")
    assert "the file has no projector, no prototypes: rebuilt" in result.said[0]
    assert "afresh" in result.said[-1]
    base = load(path).backbone
    assert isinstance(base, ViT)
    found = weights_of(tmp_path / "run")
    for network in ("student", "teacher"):  # the warm-up has three steps
        mine = {k.removeprefix(f"{network}.backbone."): x for k, x in found.items() if f"{network}.backbone" in k}
        assert all(torch.equal(x, mine[name]) for name, x in base.state_dict().items())
    assert not torch.equal(found["student.head.projector.0.weight"], found["teacher.head.projector.0.weight"])


def test_after_the_warm_up_the_backbone_learns(tmp_path):
    path = saved(tmp_path, filled(vit()))
    options = REBUILT | {"hidden": 16}
    result = going_on(path, tmp_path / "run", options=options, epochs=1, stages=1, keep="last", lr=0.01)
    assert (result.epochs, result.steps) == (2, 6)
    base, found = load(path).backbone.state_dict(), weights_of(tmp_path / "run")
    assert any(not torch.equal(x, found[f"student.backbone.{name}"]) for name, x in base.items())


def test_layers_wake_from_the_last_on():
    method = dino(backbone_vit("tiny", patch=4, image_size=SIDE, dims=16, depth=5, heads=2), num_prototypes=4, hidden=8)
    waking = Unfreezing(warmup=2, stages=3)
    layers = method.backbones[0].layers
    assert len(layers) == 6
    for epoch, count in enumerate([6, 6, 4, 2, 0, 0]):
        student, teacher = waking.resting(method, epoch)
        assert (len(student), len(teacher)) == (count, count)
        resting = {p for layer in student for p in layer.parameters()}
        assert resting == {p for layer in layers[:count] for p in layer.parameters()}


def test_new_prototypes_lie_where_images_do(tmp_path):
    restored = restore(saved(tmp_path, filled(vit())), options=REBUILT)
    method = restored.method
    assert isinstance(method, Prototypical)
    start_prototypes_(method, drawn(), Crop(SIZE), restored.rebuilt)
    prototypes = method.student.head.prototypes.directions()
    assert torch.equal(method.teacher.head.prototypes.directions(), prototypes)
    bench = Bench.of(drawn(), None, Crop(SIZE), "hypersphere")
    _, rows, _ = bench._encoded(method, drawn())
    nearest = (normalize(rows) @ prototypes.T).max(1)
    assert set(nearest.indices.tolist()) == set(range(6))  # none is empty
    random = normalize(torch.randn(6, 8))
    assert nearest.values.mean() > (normalize(rows) @ random.T).max(1).values.mean() + 0.1


def test_too_few_images_for_prototypes(tmp_path):
    restored = restore(saved(tmp_path, filled(vit())), options=REBUILT | {"num_prototypes": 61})
    with pytest.raises(ValueError, match=r"61 prototypes cannot be started from 60 images: give more"):
        start_prototypes_(restored.method, drawn(), Crop(SIZE), restored.rebuilt)


def test_a_missing_predictor_alone_is_rebuilt(tmp_path):
    contents = _simsiam()
    state = {name: x for name, x in contents["state_dict"].items() if "predictor" not in name}
    assert len(state) < len(contents["state_dict"])
    restored = restore(saved(tmp_path, CASES["vicreg"][0]()), method="simsiam")
    assert restored.rebuilt == ("predictor",)
    assert restored.method.student.predictor[0].in_features == 10


def test_exported_weights_of_a_backbone_without_description(run):
    with pytest.raises(ValueError, match="holds no backbone that can be built here"):
        restore(run.model)


def test_exported_prototypes_lack_their_projector(run, tmp_path):
    export(run.method, tmp_path, describe(run.method.backbone))
    restored = restore(tmp_path, method="dino", options=REBUILT)
    assert restored.rebuilt == ("projector", "prototypes")
    assert "prototypes without the projector that leads to them: both are made anew" in restored.said[0]


@pytest.mark.parametrize("case", ["swav", "dino vit", "ibot swin", "dinov2 with registers", "solo-learn swav"])
def test_described_backbones_are_the_same(case, tmp_path):
    backbone = load(saved(tmp_path, CASES[case][0]())).backbone
    built = native.build(describe(backbone)).eval()
    built.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(built(images).pooled, backbone(images).pooled)


def test_runs_made_in_python_get_their_method_s_activation(tmp_path):
    torch.manual_seed(0)
    method = swav(resnet("resnet18", stem="cifar", width=4), num_prototypes=12, hidden=16, bottleneck=8)
    fit(method, loader("swav"), optimization=SWAV, epochs=1, out=tmp_path, accelerator="cpu", limit_steps=1)
    restored = restore(tmp_path)
    assert "by its parts, it was taken for swav" in restored.said
    rows = torch.randn(5, 32)
    with torch.no_grad():
        projected = restored.method.student.head.projector.eval()(rows)
        assert torch.equal(projected, method.student.head.projector.eval()(rows))


# --------------------------------------------------------------------------------------------- the optimiser's memory
def test_the_optimiser_goes_on_where_its_state_fits(run):
    restored = restore(run.folder)
    optimizer = planned(restored).build(restored.method, 8)
    said = take_state_(optimizer, restored.method, restored.optimizer)
    listed = [i for group in restored.optimizer["param_groups"] for i in group["params"]]
    assert said == f"the optimiser goes on with the file's state of {len(listed)} tensors"
    mine = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in zip(listed, mine, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], restored.optimizer["state"][i]["exp_avg"])


def test_official_momentum_fits_in_the_order_of_parameters(tmp_path):
    contents = _vicreg()
    method = restore(saved(tmp_path, contents)).method
    parameters = [p for p in method.parameters() if p.requires_grad]
    contents["optimizer"] = {
        "state": {i: {"mu": torch.full_like(p, i)} for i, p in enumerate(parameters)},
        "param_groups": [{"params": list(range(len(parameters)))}],
    }
    restored = restore(saved(tmp_path, contents))
    optimizer = planned(restored).build(restored.method, 512)
    assert "goes on" in take_state_(optimizer, restored.method, restored.optimizer)
    for i, p in enumerate(p for p in restored.method.parameters() if p.requires_grad):
        assert bool((optimizer.state[p]["momentum_buffer"] == i).all())
    adam = replace(planned(restored), optimizer="adamw").build(restored.method, 512)
    assert "afresh" in take_state_(adam, restored.method, restored.optimizer)
    assert not adam.state
    contents["optimizer"]["state"][0]["mu"] = torch.zeros(3)
    optimizer = planned(restored).build(restored.method, 512)
    assert "of other parameters" in take_state_(optimizer, restored.method, contents["optimizer"])
    assert not optimizer.state


# ------------------------------------------------------------------------------------------------------ measuring
def test_measures_of_labelled_images(run):
    bench = Bench.of(drawn(600), drawn(90), Crop(SIDE), "hypersphere", limit=100)
    assert (len(bench.known), len(bench.asked), [len(x) for x in bench.subsets]) == (100, 90, [6] * DRAWS)
    found = bench(restore(run.folder).method)
    assert found.images == 90
    assert found.linear_error is not None
    assert 0 <= found.overlap <= 1


def test_the_guard_tests_on_no_test_image():
    source = drawn(60)
    judge = Judge.of(source, Crop(SIDE))
    ids = [each.id(i) for each in (judge.train, judge.test) for i in range(len(each))]
    assert sorted(ids) == sorted(source.id(i) for i in range(60))


def test_looks_of_the_guard_are_scheduled(tmp_path):
    with pytest.raises(ValueError, match="at least every one, got 0"):
        KeepBest(judge_of(), tmp_path, every=0)


# ------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"criterion": "e3mc"}, "there is no criterion 'e3mc'; there are: none, e2mc"),
        ({"coefficients": {"delta": 1}}, "e2mc has no coefficient delta; it has: beta, gamma, space"),
        ({"criterion": "none", "coefficients": {"beta": 1}}, "without a criterion there are no coefficients, got beta"),
        ({"keep": "first"}, "keep must be 'best' or 'last', got 'first'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_bad_settings(given, said, run, tmp_path, unchecked):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        going_on(run.folder, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("case", "given", "said"),
    [
        ("resnet alone", {}, "does not tell its method: say which one shall go on"),
        ("mae", {}, "MAE has no projector to spread"),
        ("esvit cvt", {}, "holds no backbone that can be built here: nothing to go on with"),
        ("dino vit", {"method": "mae"}, "there is no method 'mae' to go on with; there are: dino"),
        ("swav", {"method": "ibot"}, "works on patches, and a ResNet has none"),
    ],
)
def test_files_that_cannot_go_on(case, given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        restore(saved(tmp_path, CASES[case][0]()), **given)


def test_a_criterion_of_prototypes_needs_some(tmp_path):
    restored = restore(saved(tmp_path, CASES["vicreg"][0]()))
    with pytest.raises(ValueError, match="koleo-proto spreads prototypes, and vicreg has none"):
        add_(restored.method, "koleo-proto", "vicreg")


def test_measures_print_without_labels():
    none = Measures(5, None, None, None, *[0.5] * 9)
    result = Continued("a", "b", "c", "swav", "e2mc", {}, none, none, None, "RankMe", {0: 2.0, 1: 1.0}, 0, "best", 1, 3)
    assert "Continuing made it worse. RankMe: 2.0 before, 1.0 at the end: the weights of before are kept." in str(
        result
    )
