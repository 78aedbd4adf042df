"""One adapter per item of the reference numbers: from a case to what the package computes, by the case's names.

Matrices of logits enter as `dense` assignments. Shapes: n rows, b images, v views (view-major), k prototypes, d dims.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prototile import losses, vmf
from prototile.assignments import Assignments, Pairs, cross_entropy, cross_entropy_and_mean, dense, smooth
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Queue,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.heads import ExCBHead, Prototypes, dino_head
from prototile.losses.redundancy import covariance
from prototile.neighbors import nearest
from prototile.priors import PowerLaw, Uniform
from prototile.regularizers import (
    EffectiveEntropy,
    ManifoldCapacity,
    MatchPrior,
    Uniformity,
    VarianceCovariance,
    koleo,
    spacings_entropy,
    unit_interval,
)
from prototile.schedules import Cosine, EpochRamp, Linear, Product, Progress, Schedule
from prototile.training.optimizers import LARC, LARS
from reference import Case

Results = dict[str, Tensor]

IGNORED = {
    "rloss_reversed_not_used": "KL with its arguments swapped, given to detect that mistake",
    "proto_labels": "the smoothed one-hot matrix: a consequence of the amount of smoothing",
}

# Items whose numbers come from cross-entropies between assignments: run with every backend.
STREAMED = {
    "dino_loss",
    "dinov2_ibot_patch",
    "dinov2_losses",
    "e2mc_swav_variants",
    "excb_criterion",
    "ibot_loss",
    "msn_loss",
    "pmsn_loss",
    "swav_loss",
}


def gradients(loss: Tensor, leaves: dict[str, Tensor]) -> Results:
    """grad.<name> of every leaf; zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        f"grad.{name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def stacked(steps: Sequence[Results]) -> Results:
    """Results of several steps, with the step as leading dimension."""
    return {name: torch.stack([step[name].detach() for step in steps]) for name in steps[0]}


def uniform(num_prototypes: int) -> Tensor:
    return Uniform()(num_prototypes)


# ------------------------------------------------------------------------------------------------- MSN, PMSN
def msn_loss(case: Case) -> Results:
    return _msn(case, uniform(case.hyperparameters["num_prototypes"]))


def pmsn_loss(case: Case) -> Results:
    h = case.hyperparameters
    prior = PowerLaw(h["pl_exponent"])(h["num_prototypes"])
    results = _msn(case, prior)
    return {"prior": prior} | {name: value for name, value in results.items() if name in case}


def _msn(case: Case, prior: Tensor) -> Results:
    h = case.hyperparameters
    leaves = {name: case.leaf(name) for name in ("anchor_views", "prototypes")}
    prototypes = F.normalize(leaves["prototypes"], dim=-1)
    student = Assignments(F.normalize(leaves["anchor_views"], dim=-1), prototypes, h["tau"])
    teacher = Assignments(F.normalize(case["target_views"], dim=-1), prototypes.detach(), h["tau"])
    if amount := h.get("label_smoothing", 0):
        student, teacher = smooth(student, amount), smooth(teacher, amount)
    iterations = h.get("sinkhorn_iters", 3) if h["use_sinkhorn"] else 0
    balancer = Sequential(
        Sharpen(h["T"]), Sinkhorn(uniform(student.num_prototypes), iterations=iterations, start="probabilities")
    )
    targets = balancer(teacher)
    ploss, mean = cross_entropy_and_mean(student, targets, Pairs.every(1, h["num_views"]))
    rloss = MatchPrior(prior)(mean) if h.get("me_max", True) else torch.zeros(())
    sloss = student.entropy() if h.get("use_entropy") else torch.zeros(())
    total = ploss + h.get("memax_weight", h.get("lam")) * rloss + h.get("ent_weight", 0) * sloss
    results = {
        "targets": targets.probabilities(),
        "anchor_probs": student.probabilities(),
        "mean_probs": mean,
        "ploss": ploss,
        "rloss": rloss,
        "sloss": sloss,
        "total": total,
    }
    return results | gradients(total, leaves)


# ------------------------------------------------------------------------------------------ SwAV and Sinkhorn
def swav_sinkhorn(case: Case) -> Results:
    h = case.hyperparameters
    balancer = Sinkhorn(uniform(h["num_prototypes"]), iterations=h["n_iters"])
    return {"codes": balancer(dense(case["scores"], h["epsilon"])).probabilities()}


def dinov2_sinkhorn(case: Case) -> Results:
    h = case.hyperparameters
    balancer = Sinkhorn(uniform(h["num_prototypes"]), iterations=h["n_iters"])
    scores = case["teacher_output"]
    return {
        "codes": balancer(dense(scores.float(), h["teacher_temp"])).probabilities(),
        "codes_f64": balancer(dense(scores, h["teacher_temp"])).probabilities(),
    }


def sk1(case: Case) -> Results:
    logits = case["logits"]
    from_logits = Sinkhorn(uniform(logits.shape[1]), iterations=1)
    from_probabilities = Sinkhorn(uniform(logits.shape[1]), iterations=1, start="probabilities")
    return {
        "out": from_probabilities(dense(logits)).probabilities(),
        "out_from_exp": from_logits(dense(logits)).probabilities(),
        "out_from_exp_rownorm": from_logits(dense(logits.log_softmax(-1))).probabilities(),
    }


def swav_loss(case: Case) -> Results:
    h = case.hyperparameters
    views, z_raw = h["n_global"] + h["n_local"], case["z_raw"]
    prototypes = _swav_prototypes(case)
    balancer = Sinkhorn(uniform(h["num_prototypes"]), iterations=h["n_iters"], views=2)
    queue = Queue(h["queue_length"], h["dim"], views=2).double() if h["queue_length"] else None
    steps, codes = [], torch.empty(0)
    for z in z_raw:
        z.requires_grad_()
        loss, targets = _swav_step(z, prototypes, balancer, queue, views, h["temperature"], h["epsilon"])
        steps.append({"loss": loss} | gradients(loss, {"z_raw": z, "prototypes": prototypes.vectors}))
        codes = targets.probabilities().unflatten(0, (2, -1))
    results = stacked(steps)
    if queue is None:
        results["codes"] = codes
    else:
        results["queue_end"] = queue.embeddings
    return results


def _swav_prototypes(case: Case) -> Prototypes:
    h = case.hyperparameters
    prototypes = Prototypes(h["dim"], h["num_prototypes"], gain="free").double()
    prototypes.vectors.data.copy_(case["prototypes_init"])
    return prototypes


def _swav_step(
    z: Tensor, prototypes: Prototypes, balancer: Sinkhorn, queue: Queue | None, views: int, tau: float, eps: float
) -> tuple[Tensor, Assignments]:
    prototypes.renormalize_()
    student = prototypes(z, tau).hold()
    teacher = replace(student.leading(2, views), temperature=eps)
    observed = queue.observe(teacher) if queue is not None and queue.full else None
    targets = balancer(teacher, observed)
    if queue is not None:
        queue.push(teacher)
    return cross_entropy(student, targets, Pairs.cross(2, views)), targets


# ------------------------------------------------------------------------------------------------ DINO family
def dino_head_(case: Case) -> Results:
    h = case.hyperparameters
    mlp = dino_head(
        h["in_dim"],
        hidden=h["hidden_dim"],
        bottleneck=h["bottleneck_dim"],
        layers=h["nlayers"],
        batch_norm=h["use_bn"],
    )
    prototypes = Prototypes(h["bottleneck_dim"], h["out_dim"], gain="one" if h["norm_last_layer"] else "learned")
    mlp, prototypes, x = mlp.double(), prototypes.double(), case.leaf("x")
    own = {f"mlp.{name}": p for name, p in mlp.named_parameters()}
    if h["nlayers"] == 1:  # the official head has no Sequential then
        own = {f"mlp.{name.removeprefix('mlp.0.')}": p for name, p in own.items()}
    own["last_layer.weight_v"] = prototypes.vectors
    if prototypes.gain is not None:
        own["last_layer.weight_g"] = prototypes.gain
    else:
        assert bool((case["param.last_layer.weight_g"] == 1).all())
    _load(case, own)
    out = prototypes(mlp(x), 1.0).similarities()
    leaves = {"x": x} | {f"param.{name}": p for name, p in own.items()}
    return {"out": out} | gradients((out * case["cotangent"]).sum(), leaves)


def _load(case: Case, parameters: dict[str, nn.Parameter]) -> None:
    for name, p in parameters.items():
        p.data.copy_(case[f"param.{name}"].reshape(p.shape))


def dino_loss(case: Case) -> Results:
    h = case.hyperparameters
    temperature = EpochRamp(h["warmup_teacher_temp"], h["teacher_temp"], h["warmup_teacher_temp_epochs"])
    by_epoch = _by_epoch(temperature, h["nepochs"])
    balancer = Centering(uniform(h["out_dim"]), momentum=h["center_momentum"])
    pairs = Pairs.cross(h["n_global"], h["n_global"] + h["n_local"])
    steps = []
    for epoch, student, teacher in zip(h["epochs"], case["student_output"], case["teacher_output"], strict=True):
        student.requires_grad_()
        targets = balancer(dense(teacher, float(by_epoch[epoch])))
        loss = cross_entropy(dense(student, h["student_temp"]), targets, pairs)
        step = {"loss": loss, "center": balancer.center.clone(), "teacher_probs": targets.probabilities()}
        steps.append(step | gradients(loss, {"student_output": student}))
    return stacked(steps) | {"teacher_temp_schedule": by_epoch}


def ibot_loss(case: Case) -> Results:
    h = case.hyperparameters
    warmup = h["warmup_teacher_temp_epochs"]
    cls_temperature = _by_epoch(EpochRamp(h["warmup_teacher_temp"], h["teacher_temp"], warmup), h["nepochs"])
    patch_temperature = _by_epoch(
        EpochRamp(h["warmup_teacher_temp2"], h["teacher_temp2"], warmup, begin=h["mim_start_epoch"]), h["nepochs"]
    )
    balancer = Centering(uniform(h["out_dim"]), momentum=h["center_momentum"])
    patch_balancer = Centering(uniform(h["patch_out_dim"]), momentum=h["center_momentum2"])
    pairs = Pairs.cross(2, 2 + h["n_local"]).times(h["lambda1"])
    steps = []
    for i, epoch in enumerate(h["epochs"]):
        names = ("student_cls", "student_patch", *(["student_local_cls"] if h["n_local"] else []))
        leaves = {name: case[name][i].requires_grad_() for name in names}
        mask = case["mask"][i].flatten(0, 1).flatten(1)
        student = torch.cat([leaves["student_cls"], *[leaves[name] for name in names[2:]]])
        targets = balancer(dense(case["teacher_cls"][i], float(cls_temperature[epoch])))
        cls_loss = cross_entropy(dense(student, h["student_temp"]), targets, pairs)
        everything = dense(case["teacher_patch"][i].flatten(0, 1), float(patch_temperature[epoch]))
        hidden = replace(everything, embeddings=everything.embeddings[mask.flatten()])
        patch_loss = cross_entropy(
            dense(leaves["student_patch"][mask], h["student_temp"]),
            patch_balancer(hidden, observed=everything),
            Pairs.masked(mask).times(h["lambda2"]),
        )
        loss = cls_loss + patch_loss
        step = {"loss": loss, "cls_loss": cls_loss, "patch_loss": patch_loss}
        step |= {"center": balancer.center.clone(), "center2": patch_balancer.center.clone()}
        steps.append(step | gradients(loss, leaves))
    schedules = {"teacher_temp_schedule": cls_temperature, "teacher_temp2_schedule": patch_temperature}
    return stacked(steps) | schedules


def dinov2_ibot_patch(case: Case) -> Results:
    h = case.hyperparameters
    student, teacher, mask = case.leaf("student_patch"), case["teacher_logits"], case["mask"]
    targets = dense(case["teacher_probs"][mask].log())
    loss = cross_entropy(dense(student[mask], h["student_temp"]), targets, Pairs.masked(mask))
    balancer = Centering(uniform(teacher.shape[-1]))
    balancer(dense(teacher.flatten(0, 1)))
    results = {"loss": loss, "loss_masked": loss, "center_after": balancer.center}
    return results | gradients(loss, {"student_patch": student})


def dinov2_losses(case: Case) -> Results:
    h = case.hyperparameters
    names = ["student_global", "student_masked", "cls_features", *(["student_local"] if h["n_local"] else [])]
    leaves, mask = {name: case.leaf(name) for name in names}, case["mask"]
    local = leaves["student_local"] if h["n_local"] else leaves["student_global"][:0]
    balancer, patch_balancer = _dinov2_balancer(case, "cls"), _dinov2_balancer(case, "patch")

    targets = balancer(dense(case["teacher_global"], h["teacher_temp"]))
    each = 1 / h["n_terms"]
    global_loss = cross_entropy(
        dense(leaves["student_global"], h["student_temp"]), targets, Pairs.weighted([[0, each], [each, 0]])
    )
    local_loss = torch.zeros((), dtype=torch.float64)
    if h["n_local"]:
        every = Pairs.weighted([[each] * h["n_local"]] * 2)
        local_loss = cross_entropy(dense(local, h["student_temp"]), targets, every)
    patch_targets = patch_balancer(dense(case["teacher_masked"], h["teacher_temp"]))
    patch_loss = cross_entropy(dense(leaves["student_masked"], h["student_temp"]), patch_targets, Pairs.masked(mask))
    spread = h["koleo_weight"] * sum(koleo(view) for view in leaves["cls_features"].chunk(2))
    total = h["dino_weight"] * (global_loss + local_loss) + h["ibot_weight"] * patch_loss + spread
    results = {
        "cls_targets": torch.cat(targets.probabilities().chunk(2)[::-1]),  # the official rows are swapped
        "patch_targets": patch_targets.probabilities(),
        "dino_local": local_loss,
        "dino_global": global_loss,
        "ibot": patch_loss,
        "koleo": spread,
        "total": total,
    }
    if isinstance(balancer, Centering) and isinstance(patch_balancer, Centering):
        results |= {"center_cls_after": balancer.center, "center_patch_after": patch_balancer.center}
    return results | gradients(total, leaves)


def _dinov2_balancer(case: Case, kind: str) -> Balancer:
    h = case.hyperparameters
    prior = uniform(h["out_dim" if kind == "cls" else "patch_out_dim"])
    center = case[f"center_{kind}"]
    if h["centering"] == "sinkhorn_knopp":
        return Sinkhorn(prior, iterations=3)
    balancer = Centering(prior, momentum=h["center_momentum"])
    balancer.center.copy_(center.reshape(-1))
    return balancer


def probability_centering(case: Case) -> Results:
    h = case.hyperparameters
    balancer = ProbabilityCentering(uniform(h["num_prototypes"]), momentum=h["momentum"], floor=None)
    steps = []
    for logits in case["logits"]:
        teacher = dense(logits)
        out = balancer.train()(teacher).probabilities()
        again = balancer.eval()(teacher).probabilities()  # the state after its update, which stays
        steps.append({"out": out, "out_update_first": again, "center": balancer.center.clone()})
    return stacked(steps)


def vmf_log_normalizer(case: Case) -> Results:
    p, kappa = case.hyperparameters["p"], case.leaf("kappa")
    log_c = vmf.log_normalizer(kappa, p)
    (derivative,) = torch.autograd.grad(log_c.sum(), kappa)
    zero = torch.zeros((), dtype=torch.float64)
    assert abs(vmf.log_normalizer_at_zero(p) - float(vmf.log_normalizer(zero, p))) < 1e-9
    return {"log_c": log_c, "d_log_c": derivative, "log_c_limit0": vmf.log_normalizer(zero, p)}


def vmf_logits(case: Case) -> Results:
    h = case.hyperparameters
    prototypes = Prototypes(h["dim"], h["num_prototypes"], gain="free", vmf=True).double()
    prototypes.vectors.data.copy_(case["w"])
    y = case.leaf("y")
    assignments = replace(prototypes(y, h["tau"]), embeddings=y)  # the gradient is with respect to the unit vectors
    logits = assignments.logits() + vmf.log_normalizer_at_zero(h["dim"])
    kappa = prototypes.vectors.detach().norm(dim=1) / h["tau"]
    leaves = {"w": prototypes.vectors, "y": y}
    results = {"logits": logits, "probs": assignments.probabilities(), "kappa": kappa}
    results["log_c"] = vmf.log_normalizer(kappa, h["dim"])
    return results | gradients((logits * case["cotangent"]).sum(), leaves)


# --------------------------------------------------------------------------------------------------- KoLeo
def koleo_(case: Case) -> Results:
    x = case.leaf("x")
    loss = koleo(x)
    neighbor = nearest(F.normalize(x, dim=-1, eps=1e-8))[0]
    return {"loss": loss, "lightly_loss": loss, "nn_index": neighbor} | gradients(loss, {"x": x})


def koleo_proto(case: Case) -> Results:
    w = case.leaf("w")
    loss, mu = koleo(w, eps=0), F.normalize(w.detach(), dim=-1)
    neighbor = nearest(mu)[0]
    results = {"loss": loss, "nn_index": neighbor, "distances": (mu - mu[neighbor]).norm(dim=-1)}
    results |= {"loss_dinov2_eps": koleo(w)} | gradients(loss, {"w": w})
    if "partitions" in case:
        terms = [koleo(w[part], eps=0) for part in case["partitions"]]
        total = torch.stack(terms).sum()
        results |= {"loss_partition_sum": total, "loss_partition_mean": total / len(terms)}
        results["grad_partition_sum.w"] = gradients(total, {"w": w})["grad.w"]
    return results


# ------------------------------------------------------------------------------------------------ embeddings
def vicreg_loss(case: Case) -> Results:
    h, leaves = case.hyperparameters, {name: case.leaf(name) for name in ("z1", "z2")}
    terms = losses.vicreg(
        leaves["z1"],
        leaves["z2"],
        invariance_weight=h["sim_coeff"],
        variance_weight=h["std_coeff"],
        covariance_weight=h["cov_coeff"],
    )
    results = {"loss": terms.loss, "repr_loss": terms.invariance}
    results |= {"std_loss": terms.variance, "cov_loss": terms.covariance}
    return results | gradients(terms.loss, leaves)


def simsiam_loss(case: Case) -> Results:
    leaves = {name: case.leaf(name) for name in ("p1", "p2", "z1", "z2")}
    loss = _simsiam(leaves)
    return {"loss": loss} | {name: g for name, g in gradients(loss, leaves).items() if name in case}


def _simsiam(leaves: dict[str, Tensor]) -> Tensor:
    first = losses.negative_cosine(leaves["p1"], leaves["z2"])
    return (first + losses.negative_cosine(leaves["p2"], leaves["z1"])) / 2


def ntxent_loss(case: Case) -> Results:
    leaves = {name: case.leaf(name) for name in ("out0", "out1")}
    loss = losses.nt_xent(leaves["out0"], leaves["out1"], case.hyperparameters["temperature"])
    return {"loss": loss} | gradients(loss, leaves)


def barlow_twins_loss(case: Case) -> Results:
    leaves = {name: case.leaf(name) for name in ("z_a", "z_b")}
    loss = losses.barlow_twins(leaves["z_a"], leaves["z_b"], case.hyperparameters["lambda_param"])
    return {"loss": loss} | gradients(loss, leaves)


# ------------------------------------------------------------------------------------------------------ E2MC
def e2mc_entropy_cov(case: Case) -> Results:
    h, x = case.hyperparameters, case.leaf("x")
    mapped = unit_interval(x, h["space"])
    each = spacings_entropy(mapped, eps=h["eps"])
    entropy, cov = each.mean(), covariance(mapped)
    # the module of a single view: beta and gamma pick the two terms
    picked = EffectiveEntropy(beta=-1, gamma=0, space=h["space"], eps=h["eps"])(x[None])
    torch.testing.assert_close(picked, entropy)
    return {
        "marginal_entropy": each,
        "entropy": entropy,
        "covariance": cov,
        "grad.entropy.x": torch.autograd.grad(entropy, x, retain_graph=True)[0],
        "grad.covariance.x": torch.autograd.grad(cov, x)[0],
    }


def e2mc_vicreg(case: Case) -> Results:
    h, leaves = case.hyperparameters, {name: case.leaf(name) for name in ("z1", "z2")}
    terms = losses.vicreg(
        leaves["z1"],
        leaves["z2"],
        invariance_weight=h["sim_coeff"],
        variance_weight=h["std_coeff"],
        covariance_weight=h["cov_coeff"],
    )
    views = torch.stack(list(leaves.values()))

    def added(beta: float, gamma: float) -> Tensor:
        return EffectiveEntropy(beta=beta, gamma=gamma, space="hypercube", eps=h["eps"])(views)

    extra = added(h["ent_coeff"], h["hypercov_coeff"])
    loss = terms.loss + extra
    results = {"loss": loss, "vicreg_loss": terms.loss, "ce_loss": extra, "repr_loss": terms.invariance}
    results |= {"std_loss": terms.variance, "cov_loss": terms.covariance}
    results |= {"ent_loss": added(-1, 0), "hypercov_loss": added(0, 1)}
    return results | gradients(loss, leaves)


def e2mc_simsiam(case: Case) -> Results:
    h, leaves = case.hyperparameters, {name: case.leaf(name) for name in ("p1", "p2", "z1", "z2")}
    regularizer = EffectiveEntropy(beta=h["ent_coeff"], gamma=h["hypercov_coeff"], eps=h["eps"])
    base, extra = _simsiam(leaves), regularizer(torch.stack([leaves["z1"], leaves["z2"]]))
    return {"loss": base + extra, "ss_loss": base, "ce_loss": extra} | gradients(base + extra, leaves)


def e2mc_swav_variants(case: Case) -> Results:
    h, z = case.hyperparameters, case.leaf("z_raw")
    views, prototypes = h["n_global"] + h["n_local"], _swav_prototypes(case)
    balancer = Sinkhorn(uniform(h["num_prototypes"]), iterations=h["sinkhorn_iters"], views=2)
    base, _ = _swav_step(z, prototypes, balancer, None, views, h["temperature"], h["sinkhorn_epsilon"])
    by_view = z.unflatten(0, (views, -1))
    regularizer, rows, weight = {
        "ent": lambda: (
            EffectiveEntropy(beta=h["ent_coeff"], gamma=h["hypercov_coeff"], eps=h["eps"]),
            by_view[:2],
            1.0,
        ),
        "vc": lambda: (
            VarianceCovariance(mu=h["std_coeff"], nu=h["cov_coeff"], space=h["reg_space"]),
            by_view[:2],
            1.0,
        ),
        "unif": lambda: (Uniformity(t=h["kernel_width"]), by_view[:2], h["unif_weight"]),
        "mmcr": lambda: (ManifoldCapacity(), by_view, h["mmcr_weight"]),
    }[h["variant"]]()
    value = regularizer(rows)
    extra = weight * value
    results = {"loss": base + extra, "swav_loss": base, h["variant"]: value, "extra_loss": extra}
    results = {name: value for name, value in results.items() if name in case}
    return results | gradients(base + extra, {"z_raw": z, "prototypes": prototypes.vectors})


# ------------------------------------------------------------------------------------------------------ ExCB
def excb_balance(case: Case) -> Results:
    z = case["z"]
    boosted, plain = _explicit(z.shape[1]), _explicit(z.shape[1], boost=1.0)
    for balancer in (boosted, plain):
        balancer.sizes.copy_(case["s"])
        if (value := case.hyperparameters.get("rand_value")) is not None:
            balancer._draw = lambda: torch.full_like(balancer.sizes, value)  # noqa: B023
    low, high = boosted.multipliers()
    balanced = boosted.balance(dense(z)).logits()
    return {
        "low": low,
        "high": high,
        "balanced": balanced,
        "balanced_noboost": plain.balance(dense(z)).logits(),
        "changed": (balanced.argmax(1) != z.argmax(1)).float().mean(),
    }


def _explicit(num_prototypes: int, **options) -> ExplicitBalancing:
    return ExplicitBalancing(uniform(num_prototypes), **options)


def excb_size_update(case: Case) -> Results:
    h = case.hyperparameters
    balancer, rounded = (_explicit(h["num_clusters"], momentum=h["momentum"]) for _ in range(2))
    steps = []
    for assignments in case["assignments"]:
        balancer.update(assignments.flatten())
        _update_in_half(rounded, assignments.flatten())
        steps.append({"s_exact": balancer.sizes.clone(), "s_official": rounded.sizes.clone()})
    return stacked(steps)


def _update_in_half(balancer: ExplicitBalancing, assignments: Tensor) -> None:
    """The update of the official code, which forms the share and its product with 1 - m in half precision."""
    share = torch.bincount(assignments, minlength=len(balancer.sizes)) / len(assignments)
    balancer.sizes.mul_(balancer.momentum).add_(share.half() * (1 - balancer.momentum))


def excb_criterion(case: Case) -> Results:
    h = case.hyperparameters
    views, globals_ = h["n_global"] + h["n_local"], h["n_global"]
    official = _table(h["matches"], 2 * views) / (globals_ * (globals_ - 1 + views))
    printed = torch.ones(globals_, 2 * views, dtype=torch.float64)
    printed[:, :views] = (1 - torch.eye(globals_, views, dtype=torch.float64)) / (2 * (views - 1))
    printed[:, views:] /= 2 * views
    balancer, rounded = (_explicit(h["num_clusters"], momentum=h["size_momentum"]) for _ in range(2))
    steps = []
    for student, scores in zip(case["student"], case["teacher"], strict=True):
        student.requires_grad_()
        teacher, predictions = dense(scores, h["teacher_temp"]), dense(student, h["student_temp"])
        targets, rounded_targets = balancer(teacher), rounded.balance(teacher)
        _update_in_half(rounded, rounded_targets.hard())
        loss = cross_entropy(predictions, targets, Pairs.weighted(official))
        rounded_loss = cross_entropy(predictions, rounded_targets, Pairs.weighted(official))
        steps.append(
            {
                "loss": loss,
                "loss_official": rounded_loss,
                "loss_supplement": cross_entropy(predictions, targets, Pairs.weighted(printed)),
                "targets": targets.probabilities().unflatten(0, (globals_, -1)),
                "s": balancer.sizes.clone(),
                "s_official": rounded.sizes.clone(),
                "grad.student": gradients(loss, {"student": student})["grad.student"],
                "grad.student_official": gradients(rounded_loss, {"student": student})["grad.student"],
                "changed": (targets.hard() != scores.argmax(1)).float().mean(),
            }
        )
    return stacked(steps)


def _table(matches: Sequence[Sequence[int]], student_views: int) -> Tensor:
    table = torch.zeros(len(matches), student_views, dtype=torch.float64)
    for teacher, students in enumerate(matches):
        table[teacher, students] = 1
    return table


def excb_head(case: Case) -> Results:
    h = case.hyperparameters
    assert (h["predictor"], h["predictor_grads"], h["local_crop_grads"]) == (True, False, False)
    assert h["predictor_activation"] is None
    head = ExCBHead(
        h["in_dim"],
        h["num_clusters"],
        hidden=h["hidden_dim"],
        bottleneck=h["bottleneck_dim"],
        layers=h["hidden_layers"],
        activation=getattr(nn, h["activation"]),
        batch_norm=h["bn"],
    ).double()
    own = {f"projector.mlp.{name}": p for name, p in head.projector.named_parameters()}
    own |= {f"predictor.mlp.{name}": p for name, p in head.predictor.named_parameters()}
    own["centroid_layer.weight_v"] = head.prototypes.vectors
    assert bool((case["param.centroid_layer.weight_g"] == 1).all())
    _load(case, own)
    leaves = {name: case.leaf(name) for name in ("x_global", "x_local") if name in case}
    local = leaves["x_local"] if "x_local" in leaves else leaves["x_global"][:0]
    parts = head(leaves["x_global"], local, 0.1)
    similarities = torch.cat([part.similarities() for part in parts])
    leaves |= {f"param.{name}": p for name, p in own.items()}
    return {"similarities": similarities} | gradients((similarities * case["cotangent"]).sum(), leaves)


# -------------------------------------------------------------------------------------- optimisers, schedules
def lars_steps(case: Case) -> Results:
    h = case.hyperparameters
    parameters = [nn.Parameter(case[f"param.init.p{i}"]) for i in range(len(h["shapes"]))]
    options = {"momentum": h["momentum"], "weight_decay": h["weight_decay"], "eta": h["eta"]}
    if h["kind"] == "larc":
        optimizer = LARC(parameters, h["lrs"][0], clip=h["clip"], **options)
    else:
        optimizer = LARS(parameters, h["lrs"][0], exclude_vectors=h["kind"] == "dino" or h["filters"], **options)
    results = {}
    for step, lr in enumerate(h["lrs"], 1):
        optimizer.param_groups[0]["lr"] = lr
        for i, p in enumerate(parameters):
            p.grad = case[f"grad.step{step}.p{i}"]
        optimizer.step()
        results |= {f"param.step{step}.p{i}": p.detach().clone() for i, p in enumerate(parameters)}
    return results


def _by_epoch(schedule: Schedule, epochs: int) -> Tensor:
    return _by_step(schedule, epochs, epochs)


def _by_step(schedule: Schedule, steps: int, epochs: float) -> Tensor:
    return torch.tensor([schedule(Progress(i, steps, epochs)) for i in range(steps)], dtype=torch.float64)


def schedules(case: Case) -> Results:
    return {
        "dino_cosine_scheduler": _dino_schedule,
        "msn_schedules": _msn_schedules,
        "vicreg_lr": _vicreg_schedule,
        "excb_schedules": _excb_schedules,
        "swav_lr": _swav_schedule,
        "simsiam_lr": _simsiam_schedule,
    }[case.label](case.hyperparameters)


def _dino_schedule(h: dict) -> Results:
    schedule = Cosine(h["base_value"], h["final_value"], h["warmup_epochs"], h["start_warmup_value"], inclusive=True)
    return {"values": _by_step(schedule, h["epochs"] * h["niter_per_ep"], h["epochs"])}


def _swav_schedule(h: dict) -> Results:
    schedule = Cosine(h["base_lr"], h["final_lr"], h["warmup_epochs"], h["start_warmup"], inclusive=True)
    return {"lr": _by_step(schedule, h["epochs"] * h["ipe"], h["epochs"])}


def _msn_schedules(h: dict) -> Results:
    each = {
        "lr": Cosine(h["ref_lr"], h["final_lr"], h["warmup"], h["start_lr"], stretch=1.25, ahead=True),
        "wd": Cosine(h["wd"], h["final_wd"], stretch=1.25, ahead=True),
        "momentum": Linear(h["m0"], h["m1"], stretch=1.25),
        "sharpen": Linear(h["start_sharpen"], h["final_sharpen"], stretch=1.25),
    }
    return {name: _by_step(schedule, h["epochs"] * h["ipe"], h["epochs"]) for name, schedule in each.items()}


def _vicreg_schedule(h: dict) -> Results:
    base = h["base_lr"] * h["batch_size"] / 256
    schedule = Cosine(base, 0.001 * base, warmup_epochs=10)
    return {"lr": _by_step(schedule, h["epochs"] * h["ipe"], h["epochs"])}


def _excb_schedules(h: dict) -> Results:
    decay = Cosine(h["weight_decay"], h["weight_decay"] * h["weight_decay_target_factor"], ahead=True)
    each = {
        "lr": Cosine(h["lr"], h["lr"] * h["lr_min_factor"], h["warmup_steps"], ahead=True),
        "wd_backbone": decay,
        "wd_centroids": Product(decay, Cosine(10, 1, ahead=True)),
        "ema": Cosine(h["ema_start"], h["ema_end"]),
    }
    return {name: _by_step(schedule, h["steps"], h["steps"]) for name, schedule in each.items()}


def _simsiam_schedule(h: dict) -> Results:
    lr = _by_epoch(Cosine(h["init_lr"], 0, per_epoch=True), h["epochs"])
    return {"lr": lr, "lr_predictor": torch.full_like(lr, h["init_lr"])}


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "barlow_twins_loss": barlow_twins_loss,
    "dino_head": dino_head_,
    "dino_loss": dino_loss,
    "dinov2_ibot_patch": dinov2_ibot_patch,
    "dinov2_losses": dinov2_losses,
    "dinov2_sinkhorn": dinov2_sinkhorn,
    "e2mc_entropy_cov": e2mc_entropy_cov,
    "e2mc_simsiam": e2mc_simsiam,
    "e2mc_swav_variants": e2mc_swav_variants,
    "e2mc_vicreg": e2mc_vicreg,
    "excb_balance": excb_balance,
    "excb_criterion": excb_criterion,
    "excb_head": excb_head,
    "excb_size_update": excb_size_update,
    "ibot_loss": ibot_loss,
    "koleo": koleo_,
    "koleo_proto": koleo_proto,
    "lars_steps": lars_steps,
    "msn_loss": msn_loss,
    "ntxent_loss": ntxent_loss,
    "pmsn_loss": pmsn_loss,
    "probability_centering": probability_centering,
    "schedules": schedules,
    "simsiam_loss": simsiam_loss,
    "sk1": sk1,
    "swav_loss": swav_loss,
    "swav_sinkhorn": swav_sinkhorn,
    "vicreg_loss": vicreg_loss,
    "vmf_log_normalizer": vmf_log_normalizer,
    "vmf_logits": vmf_logits,
}
