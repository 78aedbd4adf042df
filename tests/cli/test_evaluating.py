"""`prototile evaluate`, as a user runs it: numbers, records, what is not run again, comparison, errors."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import prototile
from evaluation_cli_cases import checkpoint, resnet_checkpoint
from prototile.checkpoints import load
from prototile.cli import evaluating, main, protocols
from prototile.cli.evaluate_command import compare_files
from prototile.cli.protocols import PROTOCOLS
from prototile.data import handwriting
from prototile.data.catalog import VOC_CLASSES
from prototile.evaluation import extract, knn, logistic
from prototile.evaluation.records import Record, append, read, unpacked
from prototile.evaluation.splits import held_out, read_ids
from prototile.evaluation.transfer import AVERAGED, TransferParts


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache, tmp_path):
    """The command, on handwriting, with records in a folder of their own."""

    def run(path, *words, out=tmp_path / "e.jsonl", data="handwriting") -> int:
        given = ["evaluate", path, "--cache", cache, "--workers", "0", "--out", out, *words]
        return main([str(word) for word in [*given, *(() if data is None else ("--data", data))]])

    return run


def features(path: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    found = extract(load(path).backbone, handwriting(split), size=32)
    return found.features, found.labels


def test_numbers_are_those_of_the_functions(run, dino, tmp_path, capsys):
    assert run(dino, "--protocol", "knn", "logistic", "--ks", "5", "10", "500") == 0
    nearest, regression = read(tmp_path / "e.jsonl")
    train, test = features(dino, "train"), features(dino, "test")
    expected = knn(*train, *test, (5, 10, 500))
    kept, held = held_out(train[1], 0.2)
    judged = knn(train[0][kept], train[1][kept], train[0][held], train[1][held], (5, 10, 500))
    assert nearest.chosen == ({"k": judged.best_k},)
    assert nearest.value == pytest.approx(expected.top1[judged.best_k])
    assert nearest.details["best on test"] == expected.best_k
    assert nearest.selected_on == "validation"
    assert unpacked(nearest.right[0], 497).tolist() == expected.right[judged.best_k].tolist()
    wanted = logistic(*train, *test)
    assert regression.value == pytest.approx(wanted.value)
    assert regression.chosen[0]["C"] == pytest.approx(wanted.c)
    assert (regression.images, regression.metric, regression.selected_on) == (497, "top1", "validation")
    said = capsys.readouterr().out
    assert f"{100 * nearest.value:.2f}%" in said
    assert f"{100 * regression.value:.2f}%" in said


def test_a_record_says_all(run, dino, tmp_path):
    run(dino, "--protocol", "knn")
    told = json.loads((tmp_path / "e.jsonl").read_text())
    assert told["checkpoint"]["name"] == "dino.pth"
    assert told["checkpoint"]["layout"] == "DINO"
    assert len(told["checkpoint"]["weights"]) == len(told["data"]["test hash"]) == 64
    assert told["data"]["crop"]["size"] == 32
    assert (told["data"]["train"], told["data"]["test"], told["data"]["name"]) == (1300, 497, "handwriting")
    assert told["versions"]["torch"] == torch.__version__
    assert told["seconds"] > 0
    assert told["finished"].endswith("Z")
    assert told["features"].startswith("knn Readout(")


def test_what_is_finished_is_not_run_again(run, dino, tmp_path, monkeypatch):
    ran = []
    usual = PROTOCOLS["knn"]
    watched = protocols.Protocol(**{**vars(usual), "measure": lambda task: ran.append(1) or usual.measure(task)})
    monkeypatch.setitem(PROTOCOLS, "knn", watched)
    run(dino, "--protocol", "knn")
    run(dino, "--protocol", "knn", "--batch", "100")
    assert (len(ran), len(read(tmp_path / "e.jsonl"))) == (1, 1)
    for words in (["--ks", "3"], ["--size", "16"], ["--labels", "0.5"], ["--test-split", "train"], ["--again"]):
        before = len(ran)
        run(dino, "--protocol", "knn", *words)
        assert len(ran) == before + 1, words
    other = checkpoint(tmp_path, "other", "dino.pth")
    run(other, "--protocol", "knn")
    assert len(ran) == 7
    found = read(tmp_path / "e.jsonl")
    assert len({record.key for record in found}) == 6, "only --again has the key of another"
    run(dino, "--protocol", "knn", "--epochs", "3")
    assert len(ran) == 7, "what does not concern it does not matter"


def test_an_interrupted_evaluation_goes_on(run, dino, tmp_path, monkeypatch):
    """The second of three splits breaks; afterwards the first is not measured again."""
    seen = []
    usual = protocols.low_shot

    def breaking(*arguments, **options):
        seen.append(arguments[4][0].tolist())
        if len(seen) == 2:
            raise RuntimeError("killed")
        return usual(*arguments, **options)

    monkeypatch.setattr(protocols, "low_shot", breaking)
    words = ("--protocol", "lowshot", "--shots", "1")
    with pytest.raises(RuntimeError, match="killed"):
        run(dino, *words)
    assert not (tmp_path / "e.jsonl").exists()
    run(dino, *words)
    assert len(seen) == 4
    assert seen[1] == seen[2]
    resumed = read(tmp_path / "e.jsonl")[0]
    monkeypatch.setattr(protocols, "low_shot", usual)
    run(dino, *words, out=tmp_path / "other" / "e.jsonl")
    assert read(tmp_path / "other" / "e.jsonl")[0].values == resumed.values
    assert not list(tmp_path.glob(".*parts*"))


def test_low_shot(run, dino, tmp_path):
    run(dino, "--protocol", "lowshot", "--shots", "1", "5", "0.02", "--shot-splits", "2")
    found = read(tmp_path / "e.jsonl")
    assert [record.protocol for record in found] == ["lowshot, 1 per class", "lowshot, 5 per class", "lowshot, 2%"]
    assert [len(record.values) for record in found] == [2, 2, 1]
    assert found[1].standard_error is not None
    lists = next((tmp_path / "splits").iterdir())
    assert sorted(file.name for file in lists.iterdir()) == [
        "1-per-class-0.txt", "1-per-class-1.txt", "2percent-0.txt", "5-per-class-0.txt", "5-per-class-1.txt",
    ]  # fmt: skip
    source = handwriting("train")
    numbers = read_ids(lists / "5-per-class-1.txt", [source.id(i) for i in range(len(source))])
    assert np.bincount(source.labels[numbers]).tolist() == [5] * 10


@pytest.mark.parametrize("protocol", ["linear", "linear-dino", "linear-excb", "linear-vissl"])
def test_linear_protocols(run, dino, tmp_path, protocol):
    assert run(dino, "--protocol", protocol, "--epochs", "2", "--labels", "0.3") == 0
    record = read(tmp_path / "e.jsonl")[0]
    assert (record.protocol, record.details["augmented"], record.details["epochs"]) == (protocol, False, 2)
    assert record.selected_on == ("nothing" if protocol == "linear-dino" else "validation")
    blocks = "Readout(blocks=4"
    assert blocks in record.features
    heads = {"linear": 45, "linear-dino": 0, "linear-excb": 58, "linear-vissl": 4}[protocol]
    assert len(record.details["heads"]) == heads


def test_linear_protocols_of_resnets(run, tmp_path):
    path = resnet_checkpoint(tmp_path)
    words = ("--epochs", "2", "--labels", "0.1", "--size", "64")
    assert run(path, "--protocol", "linear-e2mc", "linear-vissl", "linear-e2mc-transfer", *words) == 0
    e2mc, vissl, transfer = read(tmp_path / "e.jsonl")
    assert e2mc.details["recipe"] == "e2mc simsiam 0.1"
    assert len(e2mc.values) == 3
    assert e2mc.standard_error is not None
    assert "map Readout(blocks=0, patches='no', normed=True, pool=0, grid=2)" in vissl.features
    assert transfer.details["recipe"] == "e2mc transfer"
    assert transfer.features == "map Readout(blocks=0, patches='no', normed=True, pool=0, grid=2)"
    assert transfer.chosen == ({"features": "map", "rate": 0.01, "batch norm": True},)


def test_augmented_views_of_resnets(run, tmp_path):
    """What is read of the crops is what the protocol reads."""
    words = ("--epochs", "1", "--labels", "0.1", "--seeds", "0", "--augmented")
    assert run(resnet_checkpoint(tmp_path), "--protocol", "linear-e2mc", "linear-e2mc-transfer", *words) == 0
    assert [x.features.split()[0] for x in read(tmp_path / "e.jsonl")] == ["pooled", "map"]


@pytest.mark.parametrize("protocol", ["linear-dino", "linear-vissl"])
def test_augmented_views(run, dino, tmp_path, protocol):
    """Random crops pass the network in every epoch; of flips both sides are there."""
    crops = protocol == "linear-dino"
    data, labels = ("handwriting", "0.1") if crops else (f"clevr-count:{clevr(tmp_path)}", "1")
    words = ("--protocol", protocol, "--epochs", "1", "--augmented", "--labels", labels)
    assert run(dino, *words, data=data) == 0
    record = read(tmp_path / "e.jsonl")[0]
    assert record.details["augmented"] is True
    assert record.data["crop"]["squeeze"] is not crops


def clevr(root) -> str:
    """Six scenes to learn from, two to test on."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 24), ("val", 8)):
        images, scenes = root / "clevr/CLEVR_v1.0/images" / split, []
        images.mkdir(parents=True)
        for i in range(n):
            name = f"CLEVR_{split}_{i:06d}.png"
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(images / name)
            scenes.append({"image_filename": name, "objects": [{"pixel_coords": [0, 0, 9.0]}] * (3 + i % 4)})
        file = root / f"clevr/CLEVR_v1.0/scenes/CLEVR_{split}_scenes.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"scenes": scenes}))
    return str(root)


def test_the_recipe_of_a_data_set(run, dino, tmp_path):
    run(dino, "--protocol", "linear-vissl", "--epochs", "1", data=f"clevr-dist:{clevr(tmp_path)}")
    assert read(tmp_path / "e.jsonl")[0].details["recipe"] == "vissl clevr-dist"


def voc(root) -> str:
    place = root / "VOCdevkit/VOC2007"
    (place / "JPEGImages").mkdir(parents=True)
    (place / "ImageSets/Main").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {"train": range(12), "val": range(12, 24), "trainval": range(24), "test": range(24, 40)}
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(place / f"JPEGImages/{i:06d}.jpg")
    signs = rng.choice([-1, 1], (40, 20))
    signs[rng.random((40, 20)) < 0.1] = 0
    for split, numbers in names.items():
        for k, name in enumerate(VOC_CLASSES):
            lines = "".join(f"{i:06d} {signs[i, k]:2d}\n" for i in numbers)
            (place / f"ImageSets/Main/{name}_{split}.txt").write_text(lines)
    return str(root)


def test_voc(run, dino, tmp_path):
    data = f"voc07:{voc(tmp_path)}"
    assert run(dino, "--protocol", "svm", "logistic", data=data) == 0
    svm, regression = read(tmp_path / "e.jsonl")
    assert (svm.metric, svm.images, svm.data["train"]) == ("mAP", 16, 24)
    assert len(svm.details["each class"]) == len(svm.details["costs"]) == 20
    assert regression.metric == "mAP 11"
    assert svm.data["crop"]["squeeze"]
    assert not regression.data["crop"]["squeeze"]


def test_the_transfer_suite(run, dino, tmp_path, caplog):
    """Two of its data sets are there; the others are left out, and there is no average."""
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        (tmp_path / "dtd/dtd/labels").mkdir(parents=True, exist_ok=True)
        names = [f"{kind}/{split}{i}.jpg" for kind in ("banded", "zigzag") for i in range(n)]
        (tmp_path / f"dtd/dtd/labels/{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        plant(tmp_path / "dtd/dtd/images", *names)
    voc(tmp_path)
    assert run(dino, "--transfer", tmp_path, data=None) == 0
    found = read(tmp_path / "e.jsonl")
    assert [(x.protocol, x.metric, x.images) for x in found] == [
        ("transfer dtd", "top1", 6),
        ("transfer voc07", "mAP 11", 16),
    ]
    assert found[0].data["train"] == 8
    assert run(dino, "--transfer", tmp_path, "--datasets", "pets", data=None) == 2
    assert run(dino, "--transfer", tmp_path / "nowhere", data=None) == 2


def plant(root, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(root / name)


def test_the_average_of_eight(dino, tmp_path, cache, monkeypatch):
    sources = {name: handwriting("test") for name in AVERAGED}

    def parts(name, root):
        return TransferParts(sources[name], None, sources[name])

    monkeypatch.setattr(evaluating, "transfer_parts", parts)
    options = {"transfer": tmp_path, "datasets": AVERAGED, "cache": cache, "out": tmp_path, "workers": 0}
    found = prototile.evaluate(dino, **options)
    assert [x.protocol for x in found[-2:]] == ["transfer sun397", "transfer average"]
    assert found[-1].value == pytest.approx(np.mean([x.value for x in found[:-1]]))
    assert prototile.evaluate(dino, **options) == found
    assert len(read(tmp_path / "evaluations.jsonl")) == 9


def test_label_free(run, dino, tmp_path):
    run(dino, "--protocol", "label-free")
    found = {record.metric: record for record in read(tmp_path / "e.jsonl")}
    assert found.keys() >= {"RankMe", "LiDAR"}
    x = features(dino, "train")[0].double()
    p = torch.linalg.svdvals(x)
    p = p / p.sum() + 1e-7
    assert found["RankMe"].value == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-3)


def test_head_middle_and_tail(dino, tmp_path, cache, capsys):
    """Classes of 101, 30 and 5 images to learn from."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (101, 30, 5)), ("test", (4, 4, 4))):
        for k, n in enumerate(counts):
            plant(tmp_path / split, *(f"{k}/{i}.png" for i in range(n)))
    words = ["evaluate", dino, "--data", f"classes:{tmp_path / 'train'}", "--test", f"classes:{tmp_path / 'test'}"]
    words += ["--protocol", "knn", "--ks", "1", "--out", str(tmp_path), "--cache", str(cache), "--workers", "0"]
    assert main(words) == 0
    told = read(tmp_path / "evaluations.jsonl")[0].details["groups"][0]
    assert [x["classes"] for x in told["groups"].values()] == [1, 1, 1]
    assert [x["images"] for x in told["groups"].values()] == [4, 4, 4]
    assert "knn, by counts: head" in capsys.readouterr().out
    assert main([*words, "--groups", "no"]) == 0
    assert "groups" not in read(tmp_path / "evaluations.jsonl")[1].details
    assert rng is not None


def test_comparing(run, dino, tmp_path, capsys):
    other = checkpoint(tmp_path, "other", "other.pth")
    words = ("--protocol", "knn", "lowshot", "--shots", "5")
    run(dino, *words, out=tmp_path / "a.jsonl")
    run(other, *words, out=tmp_path / "b.jsonl")
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("knn (top1): ")
    assert "(McNemar, exact)" in said[0]
    assert "(bootstrap of 497 images)" in said[1]
    append(tmp_path / "a.jsonl", *read(tmp_path / "b.jsonl"))
    file = str(tmp_path / "a.jsonl")
    assert main(["evaluate", "--compare", file, str(tmp_path / "b.jsonl")]) == 2
    assert f"has records of dino.pth, other.pth: say of which, {file}:dino.pth" in capsys.readouterr().err
    again = compare_files(f"{file}:dino.pth", f"{file}:other.pth")
    assert [str(x) for x in again] == said
    page = tmp_path / "pages" / "compared.html"
    assert main(["evaluate", "--compare", f"{file}:dino.pth", f"{file}:other.pth", "--report", str(page)]) == 0
    assert f"The page: {page}" in capsys.readouterr().out
    assert f"{file}:other.pth is better than {file}:dino.pth in " in page.read_text()
    with pytest.raises(ValueError, match="has no records of third"):
        compare_files(f"{file}:third", file)
    append(tmp_path / "c.jsonl", Record("svm", "mAP", 0.5, 3, checkpoint={"name": "c"}))
    with pytest.raises(ValueError, match="share no protocol"):
        compare_files(tmp_path / "b.jsonl", tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "kn"], "there is no protocol 'kn' (did you mean knn?); there are knn, probe"),
        (["--protocol", "svm"], "svm is for images of several classes each"),
        (["--protocol", "linear-e2mc"], "linear-e2mc has rates for vicreg, swav and simsiam"),
        (["--protocol", "linear-e2mc-transfer"], "reads the last map of a ResNet, and this is a ViT: linear-vissl"),
        (["--labels", "0"], "labels is a share in (0, 1]"),
    ],
)
def test_wrong_words(run, dino, capsys, words, said):
    assert run(dino, *words) == 2
    assert said in capsys.readouterr().err


def test_more_wrong_words(unchecked, dino, tmp_path, capsys):
    for words, said in (
        ([dino], "knn, linear need images to learn from"),
        ([], "which checkpoint?"),
        ([dino, "--data", f"folder:{tmp_path}"], "no images below"),
        ([dino, "--compare", "a", "b"], "--compare takes two sets of records and no checkpoint"),
        (["--compare", "a", "b"], "no file of evaluations a"),
    ):
        assert main(["evaluate", *words]) == 2
        assert said in capsys.readouterr().err
    plant(tmp_path, "a/1.png", "b/1.png")
    assert main(["evaluate", dino, "--data", f"classes:{tmp_path}"]) == 2
    assert "has no split to test on" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"there is no option 'sedes' \(did you mean seeds\?\)"):
        prototile.evaluate(dino, data="handwriting", sedes=(1,))
    with pytest.raises(ValueError, match="groups must be one of"):
        prototile.evaluate(dino, data="handwriting", groups="all")


def test_records_become_a_page(run, dino, tmp_path, capsys):
    page = tmp_path / "pages" / "page.html"
    assert run(dino, "--protocol", "knn", "probe", "--report", page) == 0
    assert f"The page: {page}" in capsys.readouterr().out
    text = page.read_text()
    nearest, _ = read(tmp_path / "e.jsonl")
    assert f"<b>{100 * nearest.value:.2f} %</b>" in text
    assert "What the features of dino.pth are worth" in text


def test_a_page_needs_a_name(unchecked, dino, tmp_path, capsys):
    assert main(["evaluate", dino, "--data", "handwriting", "--report", str(tmp_path)]) == 2
    assert f"name the page to write, --report {tmp_path / 'evaluations.html'}" in capsys.readouterr().err


def test_help_names_every_protocol(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in PROTOCOLS)
