"""`fit`: the folder of a run, its beginnings and its end."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from prototile.checkpoints import load_backbone
from prototile.checkpoints.native import load_prototypes
from prototile.training.checkpointing import read
from prototile.training.run import fit
from training_cases import CASES, SIDE, TinyBackbone, TinyMethod, loader, train, train_alone


def test_what_a_run_leaves(tmp_path):
    run = train("tiny", tmp_path / "run", files={"config.yaml": "a: 1\n"})
    assert (run.folder, run.steps) == (tmp_path / "run", 15)
    files = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())
    assert files == [
        "checkpoints/last.ckpt",
        "config.yaml",
        "environment.json",
        "model/config.json",
        "model/model.safetensors",
        "model/prototypes.safetensors",
        "train.log",
    ]
    assert (run.folder / "config.yaml").read_text() == "a: 1\n"
    assert "ended after 15 steps" in (run.folder / "train.log").read_text()
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert not any(value and value in json.dumps(environment) for value in (os.environ.get("HOME"), os.getcwd()))
    backbone = load_backbone(run.model, into=TinyBackbone())
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(backbone(images).pooled, run.method.backbone.eval()(images).pooled)


def test_the_description_of_a_backbone_reaches_the_export(tmp_path):
    described = {"class_path": "prototile.backbones.vit", "init_args": {"patch": 4}}
    config = {"method": {"class_path": "prototile.methods.dino", "init_args": {"backbone": described}}}
    run = train("tiny", tmp_path, config=config, limit_steps=1)
    assert json.loads((run.model / "config.json").read_text())["backbone"] == described
    assert read(run.checkpoint)["prototile"]["settings"]["config"] == config


def test_a_run_is_not_overwritten_by_mistake(tmp_path):
    run = train("tiny", tmp_path, limit_steps=1)
    before = run.checkpoint.read_bytes()
    with pytest.raises(FileExistsError, match=r"there is a run in .* already .*: resume goes on with it, overwrite"):
        train("tiny", tmp_path)
    assert run.checkpoint.read_bytes() == before


def test_overwriting_removes_only_what_a_run_writes(tmp_path):
    train("tiny", tmp_path, limit_steps=1)
    for name in ("metrics.jsonl", "events.out.tfevents.1", "report.html", "notes.txt", "model/left.over"):
        (tmp_path / name).write_text("of before")
    train("tiny", tmp_path, limit_steps=2, overwrite=True)
    assert (tmp_path / "notes.txt").exists()
    assert not any((tmp_path / name).exists() for name in ("metrics.jsonl", "events.out.tfevents.1", "report.html"))
    assert not (tmp_path / "model" / "left.over").exists()
    assert read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_resuming_begins_where_there_is_nothing(tmp_path):
    """So that one command serves a queue that starts it again."""
    assert train("tiny", tmp_path, resume=True, limit_steps=2).steps == 2
    assert train("tiny", tmp_path, resume=True, limit_steps=3).steps == 3


def test_a_method_is_prepared_once(tmp_path):
    method = TinyMethod()
    options = {"optimization": CASES["tiny"][2], "epochs": 3, "accelerator": "cpu", "out": tmp_path, "resume": True}
    fit(method, loader(), limit_steps=2, **options)
    assert method.prepared > 0
    again = TinyMethod()
    fit(again, loader(), **options)
    assert again.prepared == 0


def test_with_workers(tmp_path):
    """The same numbers; prefetched batches are neither lost nor doubled where a run goes on."""
    train("tiny", tmp_path / "none")
    train("tiny", tmp_path / "two", workers=2, limit_steps=7)
    train("tiny", tmp_path / "two", workers=2, resume=True)
    a, b = (read(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("none", "two"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"limit_steps": 0}, "limit_steps must be at least 1"),
        ({"resume": True, "overwrite": True}, "either resumed or overwritten"),
        ({"strategy": "horovod"}, "strategy must be 'auto', 'ddp' or 'fsdp'"),
        ({"checkpoint_minutes": 0.0}, "minutes and steps between checkpoints must be positive"),
        ({"files": {"../config.yaml": ""}}, "files lie in the run's folder itself"),
    ],
)
def test_bad_arguments(tmp_path, options, said, unchecked):
    with pytest.raises(ValueError, match=said):
        train("tiny", tmp_path, **options)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: a run needs a folder"):
        train("tiny", tmp_path / "file")


def test_nothing_is_said_on_the_terminal(tmp_path, capfd):
    levels = [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric", "prototile")]
    train("tiny", tmp_path, limit_steps=1)
    assert capfd.readouterr() == ("", "")
    assert levels == [logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric", "prototile")]


def largest_difference(first: Path, second: Path) -> float:
    """Between the weights, buffers and the optimiser's states of two checkpoints."""
    a, b = (read(folder / "checkpoints" / "last.ckpt") for folder in (first, second))
    pairs = [(x, b["state_dict"][name]) for name, x in a["state_dict"].items()]
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (a, b)]
    assert [list(state) for state in states[:1]] == [list(state) for state in states[1:]]
    for i, values in states[0].items():
        pairs += [(x, states[1][i][name]) for name, x in values.items()]
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)


WITHOUT_CHANCE = "vit without chance"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run on one rank."""
    return train(WITHOUT_CHANCE, tmp_path_factory.mktemp("alone")).folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vit of a block", pytest.param(WITHOUT_CHANCE, marks=pytest.mark.thorough)])
def test_compiled(tmp_path, start, case):
    """In a process without shape checks, which cannot be compiled: the same names and, up to rounding, numbers."""
    train(case, tmp_path / "plain", limit_steps=2)
    process = start(train_alone, case, tmp_path / "compiled", {"limit_steps": 2, "compile": True})
    assert process.wait(500) == 0, process.stderr
    assert largest_difference(tmp_path / "plain", tmp_path / "compiled") < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one(tmp_path, together, alone, strategy):
    """A run of 15 steps, with clipping, frozen prototypes, AdamW and a teacher; and its checkpoint goes on anywhere.

    With fsdp the prototypes are shared out, 12 to each rank.
    """
    together(train_alone, WITHOUT_CHANCE, tmp_path / "two", {"strategy": strategy})
    assert largest_difference(alone, tmp_path / "two") < 1e-5
    exported = [load_prototypes(folder / "model") for folder in (alone, tmp_path / "two")]
    torch.testing.assert_close(exported[1], exported[0], rtol=0, atol=1e-5)
    together(train_alone, WITHOUT_CHANCE, tmp_path / "stopped", {"strategy": strategy, "limit_steps": 7})
    shutil.copytree(tmp_path / "stopped", tmp_path / "moved")
    together(train_alone, WITHOUT_CHANCE, tmp_path / "stopped", {"strategy": strategy, "resume": True})
    assert largest_difference(tmp_path / "two", tmp_path / "stopped") < 1e-6
    train(WITHOUT_CHANCE, tmp_path / "moved", resume=True)
    assert largest_difference(alone, tmp_path / "moved") < 1e-5
    train(WITHOUT_CHANCE, tmp_path / "first", limit_steps=7)
    together(train_alone, WITHOUT_CHANCE, tmp_path / "first", {"strategy": strategy, "resume": True})
    assert largest_difference(alone, tmp_path / "first") < 1e-5


@pytest.mark.slow
def test_queues_of_ranks(tmp_path, together):
    """Each rank gets its own back; on another number of ranks they start empty."""
    together(train_alone, "resnet", tmp_path / "whole", {"epochs": 3})
    together(train_alone, "resnet", tmp_path / "two", {"epochs": 3, "limit_steps": 7})
    shutil.copytree(tmp_path / "two", tmp_path / "moved")
    buffers = read(tmp_path / "two" / "checkpoints" / "last.ckpt")["prototile"]["buffers"]
    queue = next(name for name in buffers[0] if name.endswith("queue.embeddings"))
    assert not torch.equal(buffers[0][queue], buffers[1][queue])
    together(train_alone, "resnet", tmp_path / "two", {"epochs": 3, "resume": True})
    a, b = (read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "two"))
    for mine, yours in zip(a["prototile"]["buffers"], b["prototile"]["buffers"], strict=True):
        assert all(torch.equal(mine[name], yours[name]) for name in mine)
    run = train("resnet", tmp_path / "moved", resume=True, limit_steps=8)
    assert "queues start empty" in (tmp_path / "moved" / "train.log").read_text()
    (queue_of_one,) = [x for name, x in run.method.named_buffers() if name.endswith("queue.filled")]
    assert int(queue_of_one) == 8  # of the one batch since
