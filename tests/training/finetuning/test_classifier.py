"""The classifier: its loss by hand, its layers' learning rates, what it trains and what it does not."""

import math

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from finetuning_cases import RESNET, SIZE, VIT, Flat, resnet_recipe, vit_recipe
from prototile.backbones import ViT
from prototile.checkpoints import build
from prototile.heads import dino_head, swav_head
from prototile.schedules import Progress
from prototile.training.finetuning import Classifier, Mixing, first_layer, soft_cross_entropy
from prototile.training.finetuning.classifier import freeze_unused_, set_drop_path_
from prototile.types import Views
from prototile.views import preset

NOW = Progress(0, 10)


def views(count: int = 6) -> tuple[Views, ...]:
    return (Views(torch.randn(1, count, 3, SIZE, SIZE)),)


def test_the_loss_is_that_of_a_computation_by_hand():
    classifier = Classifier(Flat(12), 2, head_std=0.01)
    classifier.eval()
    images = torch.arange(24.0).reshape(1, 2, 3, 2, 2) / 24
    with torch.no_grad():
        classifier.head.weight.copy_(torch.stack([torch.ones(12), torch.linspace(0, 1, 12)]))
        classifier.head.bias.copy_(torch.tensor([0.5, -0.5]))
    wanted = []
    for image, label in zip(images[0].flatten(1).tolist(), (1, 0), strict=True):
        first = sum(image) + 0.5
        second = sum(x * i / 11 for i, x in enumerate(image)) - 0.5
        logits = first, second
        wanted.append(math.log(math.exp(first) + math.exp(second)) - logits[label])
    terms = classifier((Views(images),), NOW, torch.tensor([1, 0]))
    assert terms.loss.item() == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert terms.parts["cross_entropy"].item() == terms.loss.item()
    assert torch.equal(terms.embeddings, images[0].flatten(1))


def test_soft_targets_by_hand():
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [math.log(2.0), math.log(2.0)]])
    targets = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    wanted = -(0.3 * math.log(1 / 4) + 0.7 * math.log(3 / 4) + math.log(1 / 2)) / 2
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(wanted, rel=1e-6)
    half = soft_cross_entropy(logits.bfloat16(), targets)
    assert half.dtype == torch.float32


def test_smoothed_labels_are_those_of_torch():
    torch.manual_seed(0)
    plain = Classifier(Flat(768), 5, mixing=Mixing(smoothing=0.2)).eval()
    given, labels = views(4), torch.tensor([0, 4, 2, 2])
    logits = plain.logits(given[0].images[0])
    wanted = nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    assert plain(given, NOW, labels).loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_views_stay_as_they_are():
    classifier = Classifier(Flat(768), 5, mixing=Mixing(0.8, 1.0, 0.1, 1.0))
    given = views(4)
    before = given[0].images.clone()
    classifier(given, NOW, torch.tensor([0, 4, 2, 2]))
    assert torch.equal(given[0].images, before)


def test_what_was_imported_is_trained_again():
    """Imported networks come in evaluation mode: batch norm is to learn."""
    backbone = build(RESNET).eval()
    classifier = Classifier(backbone, 10)
    assert all(part.training for part in classifier.modules())
    mean = backbone.resnet.bn1.running_mean.clone()
    classifier(views(), NOW, torch.zeros(6, dtype=torch.long))
    assert not torch.equal(backbone.resnet.bn1.running_mean, mean)


def test_layers_learn_by_powers_of_the_decay():
    """BEiT's: decay^(L + 1 - id), patches, tokens and positions 0, block i + 1, head and final norm L + 1."""
    backbone = build(VIT)
    assert isinstance(backbone, ViT)
    classifier = Classifier(backbone, 10)
    freeze_unused_(classifier, SIZE)
    optimization = vit_recipe(10, layer_decay=0.5, lrs=(1.0,)).optimization(1.0)
    optimizer = optimization.build(classifier, 50)
    optimization.set_values_(optimizer, Progress(100, 100, 10))
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    names = dict(classifier.named_parameters())
    assert {p for p in names.values() if p.requires_grad} == set(found)
    now, depth = optimization.lr(Progress(100, 100, 10)), 2
    for name, p in names.items():
        if name == "encoder.mask_token":
            continue
        part = name.removeprefix("encoder.vit.")
        number = int(part.split(".")[1]) + 1 if part.startswith("blocks.") else depth + 1
        number = 0 if part.startswith(("patch_embed", "pos_embed", "cls_token")) else number
        assert found[p]["lr"] == pytest.approx(now * 0.5 ** (depth + 1 - number)), name
        decays = p.ndim > 1 and part not in ("pos_embed", "cls_token")
        assert found[p]["weight_decay"] == (0.05 if decays else 0.0), name


def test_the_head_has_its_own_learning_rate():
    classifier = Classifier(build(RESNET), 10)
    recipe = resnet_recipe(4, lrs=(0.1, 0.2), head_lr=0.3)
    for lr, head in ((0.1, 0.3), (0.2, 0.6)):
        optimization = recipe.optimization(lr)
        optimizer = optimization.build(classifier, 50)
        optimization.set_values_(optimizer, Progress(0, 100, 4))
        rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"": pytest.approx(lr), "head": pytest.approx(head)}
        assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)


def test_what_logits_do_not_see_is_frozen():
    classifier = Classifier(build(VIT), 10)
    state = {name: x.clone() for name, x in classifier.state_dict().items()}
    assert freeze_unused_(classifier, SIZE) == ("encoder.mask_token",)
    assert [name for name, p in classifier.named_parameters() if not p.requires_grad] == ["encoder.mask_token"]
    assert all(p.grad is None for p in classifier.parameters())
    assert all(torch.equal(x, state[name]) for name, x in classifier.state_dict().items())
    classifier(views(), NOW, torch.zeros(6, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_paths_are_dropped_as_the_recipe_says(rate):
    """Whatever the checkpoint was trained with."""
    backbone = build(VIT | {"init_args": VIT["init_args"] | {"depth": 4}})
    set_drop_path_(backbone, rate)
    rates = [
        part.drop_prob if isinstance(part, DropPath) else 0.0
        for block in backbone.vit.blocks
        for part in (block.drop_path1, block.drop_path2)
    ]
    assert rates == pytest.approx([x * rate / 3 for x in (0, 0, 1, 1, 2, 2, 3, 3)])


def test_the_mean_of_patches():
    classifier = Classifier(build(VIT), 3, pooling="patches").eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    wanted = classifier.head(classifier.encoder(images).patches.mean(1))
    torch.testing.assert_close(classifier.logits(images), wanted)


@pytest.mark.parametrize("projector", [dino_head(32, hidden=8, bottleneck=4), swav_head(32, hidden=8, bottleneck=4)])
def test_the_first_layer_of_a_projector(projector):
    """With what follows it, and the head behind it."""
    layer = first_layer(projector)
    assert [type(part) for part in layer] == [type(part) for part in projector][: len(layer)]
    assert isinstance(layer[-1], nn.GELU | nn.ReLU)
    assert sum(isinstance(part, nn.Linear) for part in layer) == 1
    classifier = Classifier(build(VIT), 3, projection=layer).eval()
    assert classifier.head.in_features == 8
    images = torch.randn(2, 3, SIZE, SIZE)
    layer.eval()
    wanted = classifier.head(layer(classifier.encoder(images).pooled))
    torch.testing.assert_close(classifier.logits(images), wanted)


def test_the_head_begins_small():
    torch.manual_seed(0)
    head = Classifier(Flat(3000), 10, head_std=0.01).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.any()
    default = Classifier(Flat(3000), 10, head_std=None).head
    assert default.weight.abs().max().item() <= 3000**-0.5
    assert default.bias.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 1}, "at least two classes, got 1"),
        ({"pooling": "patches"}, "a Flat has no patches"),
        ({"pooling": "mean"}, "pooling must be one of pooled, patches"),
        ({"drop_path": 1.0}, r"drop_path lies in \[0, 1\)"),
        ({"projection": nn.Sequential(nn.Linear(5, 3))}, "takes 5 dims, and the backbone gives 768"),
    ],
)
def test_what_cannot_be(options, said, unchecked):
    with pytest.raises(ValueError, match=said):
        Classifier(Flat(768), **({"num_classes": 4} | options))


def test_what_views_it_takes():
    classifier = Classifier(Flat(768), 4)
    classifier.check(vit_recipe().augmentation())
    with pytest.raises(ValueError, match="one view of each image"):
        classifier.check(preset("dino"))
    with pytest.raises(ValueError, match="at least, and this checkpoint's has 1"):
        first_layer(nn.Sequential(nn.Linear(3, 3)))
