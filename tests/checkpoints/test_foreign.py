"""Every layout on small files: recognised, built whole, and refused when a single key is not as it should be."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foreign_cases import CASES, SIDE, filled, lightning, resnet, under, vit
from goldens import FOLDER
from prototile.backbones import ResNet
from prototile.checkpoints import Imported, load
from prototile.checkpoints.foreign import LAYOUTS
from prototile.checkpoints.foreign.filling import Misfit
from prototile.checkpoints.foreign.importing import imported as from_contents

LISTED = json.loads((FOLDER / "layouts.json").read_text())

every = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def saved(tmp_path: Path, contents: object, name: str = "file.pth") -> Path:
    torch.save(contents, tmp_path / name)
    return tmp_path / name


def direct(contents: dict, **options) -> Imported:
    """Without a file in between."""
    return from_contents(contents, LAYOUTS, options.get("network", "evaluated"), 2**40)


@every
def test_a_file_is_recognised_and_whole(case, tmp_path):
    make, layout, kinds, also = CASES[case]
    found = load(saved(tmp_path, make()))
    assert found.layout == layout
    assert set(found.heads) == kinds
    parts = {name for name in ("projector", "predictor", "decoder") if vars(found)[name] is not None}
    assert parts | ({"no backbone"} if found.backbone is None else set()) == also
    assert any(layout in line for line in found.evidence)
    assert layout in str(found)
    if found.backbone is None:
        return
    images = torch.randn(2, 3, SIDE, SIDE)
    assert not any(module.training for module in found.backbone.modules())
    features = found.backbone(images)
    for kind, head in found.heads.items():
        assert not head.training
        rows = features.pooled
        if kind == "patches":
            regions = isinstance(found.backbone, ResNet)
            rows = found.backbone.regions(images).flatten(2).transpose(1, 2) if regions else features.patches
            rows = rows.flatten(0, 1)
        scores = head.scores(head.projector(rows))
        assert scores.shape == (len(rows), len(head.prototypes.vectors))
        expected = (scores / 0.1).softmax(1)
        torch.testing.assert_close(head(rows, 0.1).probabilities(), expected, rtol=1e-4, atol=1e-6)
    for name, readout in found.readouts.items():
        if readout.blocks <= 2 and not readout.pool:
            assert readout(found.backbone, images).shape[0] == 2, name


def states(contents: object, path: tuple = ()) -> list[tuple]:
    """Where state dicts lie: paths whose values have tensors under dotted names."""
    if not isinstance(contents, dict):
        return []
    own = [path] if any(isinstance(x, Tensor) and "." in str(key) for key, x in contents.items()) else []
    return own + [deeper for key, x in contents.items() for deeper in states(x, (*path, key))]


def copied(contents):
    return {name: copied(x) for name, x in contents.items()} if isinstance(contents, dict) else contents


def at(contents: dict, path: tuple) -> dict:
    for name in path:
        contents = contents[name]
    return contents


ASIDE = re.compile(
    r"num_batches_tracked|relative_position_index|classifier|criterion|^dino_loss|dino_loss_func|^ibot_loss|^stage0"
    r"|^(module\.)?fc\.(weight|bias)$|^head\.(weight|bias)$|\.vit\.head\.|(teacher|student)_head\."
    r"|^(module\.)?prototypes\.(prototypes)?[1-9]\.weight$"  # how many sets there are, nobody knows
    r"|mask(ed_embed|_token)$|register_tokens$"  # a network without one is a whole network
)
CHANGES = ("missing", "shape", "extra")


def check_changes(case: str, some: int) -> None:
    """Whatever is missing, too much, or of another shape refuses the file, unless it is named as left out."""
    whole = CASES[case][0]()
    for path in states(whole):
        keys = [key for key, x in at(whole, path).items() if isinstance(x, Tensor) and not ASIDE.search(key)]
        keys = [key for key in keys if case not in ("esvit cvt", "esvit vil") or "head" in key]
        tried = [(key, change) for key in keys for change in CHANGES]
        for key, change in tried[:: max(1, 3 * (len(tried) // (3 * some)) + 1)]:
            contents = copied(whole)
            state = at(contents, path)
            if change == "missing":
                del state[key]
            elif change == "shape":
                state[key] = torch.zeros(*state[key].shape, 2)
            else:
                state[f"{key}_more"] = torch.zeros(3)
            try:
                direct(contents)
            except Misfit:
                continue
            pytest.fail(f"{case} is taken with {key} {change}")


@every
def test_a_single_key_decides(case):
    check_changes(case, 2)


@pytest.mark.slow
@every
def test_many_a_single_key_decides(case):
    check_changes(case, 10)


@pytest.mark.thorough
@every
def test_every_single_key_decides(case):
    check_changes(case, 10_000)


def test_unknown_keys_are_listed(tmp_path):
    state = filled(vit()) | {f"odd.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ValueError, match=r"file.pth: .*odd.0 is unknown, .* and 4 more"):
        load(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"linear.weight": torch.zeros(3, 2), "linear.bias": torch.zeros(3)}, "is of no layout that is known .* class"),
        ({"state_dict": {"module.linear.weight": torch.zeros(3, 2)}}, "a classifier of an evaluation"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, "a classifier of an evaluation"),
        ({"queue": torch.zeros(2, 3, 4)}, "a queue of embeddings"),
        ({"cls_attn_blocks.0.gamma1": torch.zeros(3), "norm.weight": torch.zeros(3)}, r"a backbone alone \(XCiT\)"),
        ({}, "is of no layout"),
        ({"teacher": {}, "student": {}}, "is of no layout"),
        ([torch.zeros(2)], "holds list and no names of weights"),
        (torch.zeros(2), "holds Tensor and no names"),
    ],
)
def test_what_is_no_network(tmp_path, contents, said):
    with pytest.raises(ValueError, match=said):
        load(saved(tmp_path, contents))


@pytest.mark.parametrize("case", ["dino vit", "ibot swin", "excb resnet", "solo-learn dino", "lightly dino", "msn"])
def test_teacher_and_student_are_told_apart(case, tmp_path):
    path = saved(tmp_path, CASES[case][0]())
    teacher, student, evaluated = (load(path, network=name) for name in ("teacher", "student", "evaluated"))
    images = torch.randn(1, 3, 64, 64) if "swin" in case else torch.randn(1, 3, SIDE, SIDE)
    outputs = [found.backbone(images).pooled for found in (teacher, student, evaluated)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
    same = student if case.startswith("solo") else teacher  # solo-learn evaluates its student
    assert torch.equal(outputs[2], same.backbone(images).pooled)
    assert evaluated.network.startswith("student" if case.startswith("solo") else "teacher")


def test_a_network_that_is_not_there(tmp_path):
    path = saved(tmp_path, CASES["swav"][0]())
    with pytest.raises(ValueError, match="there is no student in this file of SwAV, it holds: only"):
        load(path, network="student")


@pytest.mark.usefixtures("unchecked")
def test_a_network_of_no_kind(tmp_path):
    with pytest.raises(ValueError, match="network must be one of evaluated, teacher, student, got 'both'"):
        load(tmp_path, network="both")


def test_a_file_of_the_student_alone(tmp_path):
    contents = CASES["dino vit"][0]()
    del contents["teacher"]
    found = load(saved(tmp_path, contents))
    assert found.network == "student: the file has no teacher"


def test_entries_that_nobody_knows(tmp_path):
    contents = CASES["dino vit"][0]() | {"note": "hello", "numbers": [1, 2]}
    found = load(saved(tmp_path, contents))
    assert "note: no weights" in found.ignored
    with pytest.raises(ValueError, match="it is not known what these are: memory"):
        load(saved(tmp_path, contents | {"memory": {"bank": torch.zeros(3)}}, "other.pth"))


def test_what_the_file_tells(tmp_path):
    found = load(saved(tmp_path, CASES["dino vit"][0]()))
    assert found.epoch == 3
    assert found.settings == {"lr": 0.1, "arch": "small"}
    assert found.temperature == 0.1
    assert list(found.buffers) == ["dino_loss.center"]
    assert any(line.startswith("student:") for line in found.ignored)
    assert any(line.startswith("optimizer:") for line in found.ignored)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_wrappers(tmp_path, prefix):
    assert load(saved(tmp_path, under(prefix, filled(vit())))).layout == "DINO"


def test_half_precision_becomes_float32(tmp_path):
    state = {name: x.half() if x.is_floating_point() else x for name, x in filled(resnet()).items()}
    found = load(saved(tmp_path, state))
    assert {p.dtype for p in found.backbone.parameters()} == {torch.float32}
    torch.testing.assert_close(
        found.backbone.resnet.conv1.weight, filled(resnet())["conv1.weight"], rtol=1e-3, atol=1e-3
    )


def test_weights_that_are_no_numbers(tmp_path):
    state = filled(vit())
    state["norm.weight"][3] = torch.nan
    with pytest.raises(ValueError, match=r"norm.weight holds NaN or infinity"):
        load(saved(tmp_path, state))


def test_a_lightning_file_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="is of no layout that is known"):
        load(saved(tmp_path, lightning({"net.weight": torch.zeros(3, 3)})))


def expanded(listing: dict, zeros: dict[torch.dtype, Tensor]) -> dict:
    """Tensors of these shapes: all of them zeros, and all of them the same ones."""
    found = {}
    for name, value in listing.items():
        if isinstance(value, dict):
            found[name] = expanded(value, zeros)
            continue
        shape, _, kind = value.partition(" ")
        sizes = [int(size) for size in shape.split("x") if size]
        dtype = getattr(torch, kind or "float32")
        count = torch.Size(sizes).numel()
        match = re.search(r"\[(\d+)-(\d+)\]", name)
        numbers = [None] if match is None else range(int(match[1]), int(match[2]) + 1)
        for number in numbers:
            key = name if match is None else name[: match.start()] + str(number) + name[match.end() :]
            found[key] = zeros[dtype][:count].view(sizes)
    return found


@pytest.mark.parametrize("name", LISTED)
def test_official_sizes(name):
    """Every key of the projects' own files, at their true sizes, is known."""
    zeros = {torch.float32: torch.zeros(8192**2), torch.int64: torch.zeros(197**2, dtype=torch.int64)}
    found = direct(expanded(LISTED[name], zeros))
    assert found.layout.split()[0] == name.split()[0]
    dims = {"ViT-S": 384, "ViT-B": 768, "ViT-g": 1536, "Swin-T": 768, "ResNet-50": 2048, "ResNet-18": 512}
    expected = next((d for word, d in dims.items() if word in name), 768 if "data2vec" in name else 384)
    assert found.backbone.dims == expected
    prototypes = {kind: len(head.prototypes.vectors) for kind, head in found.heads.items()}
    assert prototypes == {
        "DINO ViT-S": {"cls": 65536},
        "DINO ResNet-50": {"cls": 60000},
        "DINOv2 training": {"cls": 1024, "patches": 1024},
        "EsViT Swin-T": {"cls": 65536, "patches": 65536},
        "EsViT ResNet-50": {"cls": 65536, "patches": 65536},
        "ExCB ResNet-50": {"cls": 65536},
        "ExCB ViT-S": {"cls": 65536},
        "iBOT ViT-S": {"cls": 8192, "patches": 8192},
        "iBOT Swin-T": {"cls": 8192, "patches": 8192},
        "MSN ViT-S": {"cls": 1024},
        "solo-learn SwAV ResNet-18": {"cls": 3000},
        "SwAV ResNet-50": {"cls": 3000},
    }.get(name, {})
