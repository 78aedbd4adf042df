"""Imports that go wrong without a word: each of these fails where one of the known mistakes is made.

What is expected is computed from the file's own tensors, by functions that know nothing of the package.
"""

import itertools
import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import official
from foreign_cases import CASES, DIMS, SIDE, K, filled, lightning, linear, mlp, resnet, under, vit
from prototile.backbones import Readout
from prototile.checkpoints import Imported, load


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def case(tmp_path):
    """A case's contents, and what is loaded of its file; each has a file of its own, as weights stay in it."""
    numbers = itertools.count()

    def opened(name: str, contents=None, **options) -> tuple[dict, Imported]:
        contents = CASES[name][0]() if contents is None else contents
        path = tmp_path / f"{next(numbers)}.pth"
        torch.save(contents, path)
        return contents, load(path, **options)

    return opened


def images(side: int = SIDE, width: int | None = None) -> Tensor:
    return torch.randn(2, 3, side, width or side)


def part(state: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def head(state: dict, x: Tensor, activation=F.gelu, normed: bool = False) -> Tensor:
    """An MLP of numbered layers."""
    numbers = sorted({int(name.split(".")[0]) for name in state if re.match(r"\d", name)})
    for i, following in pairwise([*numbers, None]):
        if f"{i}.running_mean" in state:
            x = official.batch_norm(state, str(i), x)
        else:
            x = official.linear(state, str(i), x)
        if following is not None and following > i + 1:
            x = activation(x)
    return x


# ------------------------------------------------------------------------------------- prototypes and their scores


def test_gains_are_kept_and_lengths_of_directions_are_not(case):
    contents, found = case("dino vit")
    teacher, x = contents["teacher"], images()
    v, g = teacher["head.last_layer.weight_v"], teacher["head.last_layer.weight_g"]
    embeddings = found.heads["cls"].projector(found.backbone(x).pooled)
    expected = F.normalize(head(part(teacher, "head.mlp."), found.backbone(x).pooled), dim=1) @ F.normalize(v, dim=1).T
    same(found.heads["cls"].scores(embeddings), expected * g.T)
    same(found.heads["cls"].prototypes.directions(), F.normalize(v, dim=1))
    assert (expected * g.T - expected).abs().max() > 1e-3  # gains matter here


def test_gains_of_one_are_none(case):
    _, found = case("excb vit")
    assert found.heads["cls"].prototypes.gain is None
    assert found.heads["cls"].prototypes.normalized


def test_new_style_weight_norm_is_the_old_one(case):
    _, new = case("dino, new weight norm")
    _, old = case("dino vit")
    assert torch.equal(new.heads["cls"].prototypes.weights(), old.heads["cls"].prototypes.weights())
    assert new.heads["cls"].prototypes.gain is not None


def test_a_plain_last_layer_is_not_normalised(case):
    contents, found = case("dino resnet, plain last layer")
    state = part(contents["teacher"], "module.")
    rows = images()[:, 0, 0]
    expected = F.normalize(head(part(state, "head.mlp."), rows), dim=1) @ state["head.last_layer.weight"].T
    same(found.heads["cls"].scores(found.heads["cls"].projector(rows)), expected)


@pytest.mark.parametrize("name", ["swav", "deepcluster-v2", "vissl swav"])
def test_swav_prototypes_are_as_stored(case, name):
    contents, found = case(name)
    if name == "vissl swav":
        stored = [contents["classy_state_dict"]["base_model"]["model"]["heads"]["0.prototypes0.weight"]]
    else:
        stored = [x for key, x in contents.items() if "prototypes" in key]
    for kept, layer in zip(stored, found.heads.values(), strict=True):
        assert torch.equal(layer.prototypes.weights(), kept)
        same(layer.prototypes.directions(), F.normalize(kept, dim=1))


def test_several_sets_stand_in_their_order(case):
    contents, found = case("deepcluster-v2")
    assert list(found.heads) == ["cls", "cls2", "cls3"]
    assert torch.equal(found.heads["cls2"].prototypes.vectors, contents["module.prototypes.prototypes1.weight"])
    assert found.heads["cls"].projector is found.heads["cls3"].projector


def test_swav_takes_relu(case):
    contents, found = case("swav")
    rows = torch.randn(3, 128)
    same(found.heads["cls"].projector(rows), head(part(contents, "module.projection_head."), rows, F.relu))


def test_msn_normalises_both_sides(case):
    contents, found = case("msn")
    rows = torch.randn(3, 6)
    expected = F.normalize(rows, dim=1) @ F.normalize(contents["prototypes"], dim=1).T
    same(found.heads["cls"].scores(rows), expected)


def test_msn_prototypes_from_a_gpu(tmp_path, monkeypatch):
    tag = torch.serialization.location_tag
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: tag(storage) and "cuda:0")
    torch.save(CASES["msn"][0](), tmp_path / "file.pth")
    monkeypatch.undo()
    assert load(tmp_path / "file.pth").heads["cls"].prototypes.vectors.device.type == "cpu"


def test_excb_predicts_from_normalised_batches(case):
    contents, found = case("excb resnet")
    state, rows = part(contents["teacher"], "classifier."), torch.randn(3, 6)
    normed = official.batch_norm(state, "predictor_activation", rows)
    same(found.predictor(rows), head(part(state, "predictor.mlp."), normed, F.relu))


def test_excb_of_a_vit_takes_gelu(case):
    contents, found = case("excb vit")
    state, rows = part(contents["teacher"], "classifier."), torch.randn(3, DIMS)
    same(found.heads["cls"].projector(rows), head(part(state, "projector.mlp."), rows, F.gelu))
    normed = official.batch_norm(state, "predictor_activation", torch.ones(3, 6))
    same(found.predictor(torch.ones(3, 6)), head(part(state, "predictor.mlp."), normed, F.gelu))


def test_excb_keeps_frequencies_apart_from_scores(case):
    _, found = case("excb resnet")
    assert set(found.buffers) == {"criterion.center", "criterion.cluster_count"}


def test_ibot_prototypes_of_patches_are_their_own(case):
    contents, found = case("ibot vit, separate prototypes")
    cls, patches = found.heads["cls"], found.heads["patches"]
    same(patches.prototypes.directions(), F.normalize(contents["teacher"]["head.last_layer2.weight_v"], dim=1))
    assert cls.projector is patches.projector
    assert len(cls.prototypes.vectors) == K
    assert len(patches.prototypes.vectors) == 5


def test_esvit_has_a_head_for_regions(case):
    contents, found = case("esvit swin")
    rows = torch.randn(3, 16)
    same(found.heads["patches"].projector(rows), head(part(contents["teacher"], "head_dense.mlp."), rows))


def test_lightly_adds_biases(case):
    contents, found = case("lightly swav")
    state, rows = contents["state_dict"], torch.randn(3, 6)
    expected = F.linear(F.normalize(rows, dim=1), state["prototypes.heads.0.weight"], state["prototypes.heads.0.bias"])
    same(found.heads["cls"].scores(rows), expected)
    same(found.heads["cls"].prototypes(rows, 0.1).probabilities(), (expected / 0.1).softmax(1))


def test_solo_learn_normalises_prototypes(case):
    contents, found = case("solo-learn swav")
    rows = torch.randn(3, 6)
    expected = F.normalize(rows, dim=1) @ F.normalize(contents["state_dict"]["prototypes.weight_v"], dim=1).T
    same(found.heads["cls"].scores(rows), expected)


def test_simsiam_ends_with_statistics_only(case):
    contents, found = case("simsiam")
    state, rows = part(contents["state_dict"], "module."), torch.randn(3, 32)
    projected = head(part(state, "encoder.fc."), rows, F.relu)
    same(found.projector(rows), projected)
    same(found.predictor(projected), head(part(state, "predictor."), projected, F.relu))


def test_a_batch_norm_uses_its_statistics(case):
    _, found = case("msn")
    rows = torch.randn(4, DIMS)
    same(found.heads["cls"].projector(rows)[:1], found.heads["cls"].projector(rows[:1]))


# ------------------------------------------------------------------------------------- backbones


@pytest.mark.parametrize(
    ("name", "place", "how"),
    [
        ("dino vit", ("teacher", "backbone."), "dino"),
        ("dino, old keys", ("teacher", ""), "dino"),
        ("dinov2", ("", ""), "dino"),
        ("dinov2 with registers", ("", ""), "antialias"),
        ("msn", ("target_encoder", "module."), "msn"),
        ("mae", ("model", ""), "antialias"),
        ("excb vit", ("teacher", "backbone."), "dino"),
    ],
)
@pytest.mark.parametrize("side", [SIDE, 56])
def test_vits_at_their_size_and_at_another(case, name, place, how, side):
    """Where positions are sampled, which epsilon norms have, what registers have no part in."""
    contents, found = case(name)
    state = part(contents[place[0]] if place[0] else contents, place[1])
    x = images(side)
    tokens = official.norm(state, "norm", official.vit(state, x, heads=1, resize=how))
    features = found.backbone(x)
    same(features.cls, tokens[:, 0])
    first = 1 + (3 if "registers" in name else 0)
    same(features.patches, tokens[:, first:])


def test_msn_takes_square_views_only(case):
    _, found = case("msn")
    with pytest.raises(ValueError, match="square views"):
        found.backbone(images(32, 48))


def test_dinov2_in_training(case):
    """Blocks in chunks under their own numbers, the first half of a gated layer is the gate."""
    contents, found = case("dinov2, blocks in chunks, gated, two heads")
    state = part(contents["teacher"], "backbone.")
    flat = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): x for name, x in state.items()}
    x = images()
    tokens = official.norm(flat, "norm", official.vit(flat, x, heads=1))
    same(found.backbone(x).cls, tokens[:, 0])


def test_small_numbers_show_the_epsilon(case):
    """With embeddings of 0.002 another epsilon than 1e-6 is off by far."""
    small = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    state = {name: x * (0.002 if name in small else 1) for name, x in filled(vit()).items()}
    _, found = case("dino vit alone", state)
    x = images()
    same(found.backbone(x).cls, official.norm(state, "norm", official.vit(state, x, heads=1))[:, 0])


@pytest.mark.parametrize("name", ["esvit swin", "ibot swin", "data2vec", "mae with its decoder"])
def test_every_norm_has_the_small_epsilon(case, name):
    _, found = case(name)
    norms = [module for module in found.backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert {module.eps for module in norms} == {1e-6}


@pytest.mark.parametrize(
    ("name", "place", "padding"),
    [
        ("dino resnet, batch norm in the head", ("teacher", "module.backbone."), 3),
        ("esvit resnet", ("teacher", "module.backbone.backbone."), 3),
        ("excb resnet", ("teacher", "backbone."), 3),
        ("simsiam", ("state_dict", "module.encoder."), 3),
        ("swav", ("", "module."), 3),
        ("swav of double width", ("", "module."), 3),
        ("vicreg of double width", ("model", "module.backbone."), 3),
        ("solo-learn swav", ("state_dict", "backbone."), 2),
        ("solo-learn deepcluster-v2, old keys", ("state_dict", "encoder."), 2),
        ("lightly dino", ("state_dict", "backbone."), 3),
    ],
)
def test_resnets(case, name, place, padding):
    contents, found = case(name)
    state = part(contents[place[0]] if place[0] else contents, place[1])
    x = images()
    expected = official.resnet(state, x, stem_padding=padding)
    same(found.backbone(x).pooled, expected.mean((2, 3)))
    same(found.backbone.regions(x), expected)


def test_a_small_stem_elsewhere_is_padded_by_one(case):
    state = filled(under("backbone.", resnet(side=3)) | mlp("projection_head.layers", (32, 6)))
    _, found = case("lightly", lightning(state))
    x = images()
    expected = official.resnet(part(state, "backbone."), x, stem_padding=1)
    same(found.backbone(x).pooled, expected.mean((2, 3)))


def test_a_list_of_layers_is_the_same_resnet(case):
    contents, found = case("lightly dino, a list of layers")
    state = contents["state_dict"]
    assert torch.equal(found.backbone.resnet.conv1.weight, state["backbone.0.weight"])
    assert torch.equal(found.backbone.resnet.layer4[1].conv2.weight, state["backbone.7.1.conv2.weight"])


def test_swin_merges_where_timm_does(case):
    contents, found = case("esvit swin")
    reduction = found.backbone.swin.layers[1].downsample.reduction.weight
    assert torch.equal(reduction, contents["teacher"]["layers.0.downsample.reduction.weight"])


def test_a_window_shrinks_in_the_last_stage(case):
    _, found = case("esvit swin")  # windows of 4, and of 2 in the last stage
    windows = [[block.window for block in stage.blocks] for stage in found.backbone.swin.layers]
    shifts = [[block.shift for block in stage.blocks] for stage in found.backbone.swin.layers]
    assert windows == [[4, 4], [2, 2]]
    assert shifts == [[0, 0], [0, 0]]  # both stages are one window


def test_the_student_of_ibot_has_a_mask_token(case):
    contents, found = case("ibot vit, separate prototypes", network="student")
    assert torch.equal(
        found.backbone.mask_token.flatten(), contents["student"]["module.backbone.masked_embed"].flatten()
    )
    _, teacher = case("ibot vit, separate prototypes")
    assert teacher.backbone.mask_token is None


def test_lightlys_bare_keys_are_the_teacher(case):
    contents, found = case("lightly dino")
    assert found.network.startswith("teacher")
    assert torch.equal(found.backbone.resnet.conv1.weight, contents["state_dict"]["backbone.conv1.weight"])


def test_solo_learns_bare_keys_are_the_student(case):
    contents, found = case("solo-learn dino")
    assert found.network.startswith("student")
    assert torch.equal(found.backbone.resnet.conv1.weight, contents["state_dict"]["backbone.conv1.weight"])


def test_data2vec_is_the_model_and_not_its_average(case):
    contents, found = case("data2vec")
    assert torch.equal(found.backbone.beit.cls_token, contents["model"]["cls_token"])
    assert torch.equal(found.predictor[0].weight, contents["model"]["lm_head.weight"])


def test_fine_tuned_networks_pool_patches_before_the_norm(case):
    contents, found = case("mae, fine-tuned")
    state, x = contents["model"], images()
    mean = official.vit(state, x, heads=1, resize="antialias")[:, 1:].mean(1)
    same(found.backbone(x).pooled, official.norm(state, "fc_norm", mean))
    _, found = case("data2vec, fine-tuned")
    tokens = found.backbone(x, blocks=1).blocks[0]
    same(found.backbone(x).pooled, found.backbone.beit.norm(tokens[:, 1:].mean(1)))


def test_mae_keeps_the_positions_of_its_decoder(case):
    contents, found = case("mae with its decoder")
    assert torch.equal(found.decoder.positions, contents["model"]["decoder_pos_embed"])
    assert torch.equal(found.decoder.mask_token, contents["model"]["mask_token"])
    assert found.decoder.blocks[0].attn.num_heads == 2  # of 32 dims each


# ------------------------------------------------------------------------------------- what evaluations read


@pytest.mark.parametrize(
    ("name", "evaluation", "readout"),
    [
        ("dino vit", "linear", Readout(blocks=4)),
        ("ibot swin", "linear", Readout(blocks=4)),
        ("dinov2", "linear", Readout(blocks=1, patches="behind")),
        ("dinov2", "linear4", Readout(blocks=4, patches="behind")),
        ("msn", "lowshot", Readout(blocks=1, normed=False)),
        ("swav", "linear", Readout()),
        ("swav", "knn", Readout()),
    ],
)
def test_official_readouts(case, name, evaluation, readout):
    assert case(name)[1].readouts[evaluation] == readout


@pytest.mark.parametrize(("name", "patches"), [("dino vit", "interleaved"), ("ibot vit alone", "behind")])
def test_large_vits_are_read_in_another_way(case, name, patches):
    large = filled(vit(dims=768, depth=1))
    _, found = case(name, {"state_dict": large} if "ibot" in name else large)
    assert found.readouts["linear"] == Readout(blocks=1, patches=patches)


def test_linear_classifiers_are_told_apart_from_networks(tmp_path):
    torch.save({"state_dict": filled(linear("module.linear", 8, 10)), "best_acc": 1.0}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="is of no layout that is known"):
        load(tmp_path / "file.pth")
