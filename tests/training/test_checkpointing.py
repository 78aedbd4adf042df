"""Checkpoints of a run: refused where they are broken, kept where the disk is full, exact where a run goes on."""

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prototile.checkpoints import atomic
from prototile.training import checkpointing
from prototile.training.checkpointing import AtomicIO, Interrupted, Signals, read, requeue
from training_cases import loader, tiny, train, train_alone


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested ones, with their names."""
    if isinstance(value, dict | list | tuple):
        for key, x in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(x, f"{name}.{key}")
    else:
        yield name, value


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two checkpoints, to the bit: weights, optimiser, buffers, loops, loader."""
    a, b = (dict(flat(read(folder / "checkpoints" / "last.ckpt"))) for folder in (first, second))
    equal = {name: _equal(a[name], b[name]) for name in set(a) & set(b)}
    return sorted(set(a) ^ set(b)) + [name for name, same in equal.items() if not same]


def _equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize(("case", "limits"), [("tiny", (1, 4, 5, 6)), ("vit", (7,)), ("resnet", (8,))])
def test_a_run_that_goes_on_equals_one_that_was_not_stopped(tmp_path, case, limits):
    """At a first step, before, at and after the end of an epoch."""
    train(case, tmp_path / "whole")
    for limit in limits:
        assert train(case, tmp_path / f"{limit}", limit_steps=limit).steps == limit
        assert train(case, tmp_path / f"{limit}", resume=True).steps == 15
        assert differences(tmp_path / "whole", tmp_path / f"{limit}") == []


def test_going_on_within_accumulation(tmp_path):
    """Of five batches an epoch in windows of two: three steps; none is saved within a window."""
    train("tiny", tmp_path / "whole", accumulate=2, checkpoint_steps=1)
    for limit in (1, 2, 3, 4):
        train("tiny", tmp_path / f"{limit}", accumulate=2, limit_steps=limit)
        train("tiny", tmp_path / f"{limit}", accumulate=2, resume=True)
        assert differences(tmp_path / "whole", tmp_path / f"{limit}") == []


def test_a_checkpoint_at_the_end_goes_on_to_nothing(tmp_path):
    train("tiny", tmp_path / "run")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()  # killed after its last checkpoint
    assert train("tiny", tmp_path / "run", resume=True).steps == 15
    assert weights.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), [("vit", (0, 3, 6)), ("resnet", (1, 5, 9))])
def test_killed_at_any_moment(tmp_path, start, case, steps):
    """`kill -9`, three times in one run: what goes on ends with the same bits."""
    train(case, tmp_path / "whole")
    options = {"resume": True, "checkpoint_steps": 2, "workers": 1}
    for kill in steps:
        process = start(train_alone, case, tmp_path / "killed", options, 0.02)
        process.wait_for(f"{kill}")
        time.sleep(0.03 * (kill % 4))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    process = start(train_alone, case, tmp_path / "killed", options)
    assert process.wait() == 0, process.stderr
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    assert (tmp_path / "killed" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_signals_end_a_run_with_a_checkpoint(tmp_path, start):
    train("tiny", tmp_path / "whole")
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        process = start(train_alone, "tiny", tmp_path / "run", {"resume": True, "workers": 1}, 0.2)
        step = {signal.SIGTERM: 2, signal.SIGINT: 6, signal.SIGUSR1: 11}[signum]
        process.wait_for(f"{step}")
        process.send_signal(signum)
        assert process.wait() == code, process.stderr
        assert f"ended by {signum.name}, with the checkpoint" in process.stderr
        assert read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] in (step + 1, step + 2)
        assert f"ended by Interrupted: ended by {signum.name}" in (tmp_path / "run" / "train.log").read_text()
    process = start(train_alone, "tiny", tmp_path / "run", {"resume": True})
    assert process.wait() == 0, process.stderr
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    signals = Signals()
    signals.listen()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == signal.SIGUSR1
    with pytest.raises(KeyboardInterrupt):  # the second one ends at once
        _interrupt()
    assert signal.getsignal(signal.SIGUSR1) is before


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_an_interruption_says_how_to_go_on():
    error = Interrupted(signal.SIGTERM, Path("run/checkpoints/last.ckpt"))
    assert error.code == 143
    assert str(error) == "ended by SIGTERM, with the checkpoint run/checkpoints/last.ckpt: go on with resume"


def test_a_slurm_job_is_queued_again(monkeypatch):
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert commands == [["scontrol", "requeue", "17"], ["scontrol", "requeue", "12_3"]]


def test_a_queue_that_cannot_be_asked(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "/nowhere")
    requeue()
    assert "the job 17 could not be queued again" in caplog.text


class FullDisk:
    """From some write on there is no room for checkpoints."""

    def __init__(self, monkeypatch, first: int, last: int):
        self.count, self.first, self.last = 0, first, last
        monkeypatch.setattr(checkpointing, "write_atomically", self)

    def __call__(self, path, write):
        self.count += 1
        if not self.first <= self.count <= self.last:
            return atomic.write_atomically(path, write)

        def full(file):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        return atomic.write_atomically(path, full)


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch, caplog):
    """Training goes on, and the next checkpoint is as it would have been."""
    train("tiny", tmp_path / "whole")
    FullDisk(monkeypatch, 2, 2)
    train("tiny", tmp_path / "run")
    assert "no room to write last.ckpt" in caplog.text
    assert "the previous last.ckpt is kept" in caplog.text
    assert "Training goes on" in caplog.text
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_disk_that_stays_full(tmp_path, monkeypatch):
    """The last checkpoint must be written; the one before is kept, and no part of the other."""
    FullDisk(monkeypatch, 2, 99)
    with pytest.raises(OSError, match=r"no room to write last.ckpt: free some in .*; the previous last.ckpt is kept"):
        train("tiny", tmp_path)
    assert read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 5
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_checkpoints_by_step_and_time(tmp_path, monkeypatch):
    written = FullDisk(monkeypatch, 99, 99)
    train("tiny", tmp_path / "a")
    assert written.count == 3  # epochs
    written.count = 0
    train("tiny", tmp_path / "b", checkpoint_steps=2)
    assert written.count == 3 + 6  # after the steps 2, 4, 6, 8, 12 and 14; the tenth ends an epoch
    written.count = 0
    train("tiny", tmp_path / "c", checkpoint_minutes=1e-9)
    assert written.count == 15


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*last.ckpt: start without resume"):
        read(path)
    train("tiny", tmp_path / "run", limit_steps=1)
    whole = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint of prototile: it is cut off, or holds"):
            read(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="is no checkpoint of a prototile run"):
        read(path)


class Evil:
    """Would run code where it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def test_no_code_is_run(tmp_path):
    torch.save({"prototile": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        AtomicIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)


def test_a_checkpoint_holds_plain_values_only(tmp_path):
    train("tiny", tmp_path, limit_steps=1)
    plain = {type(value) for _, value in flat(read(tmp_path / "checkpoints" / "last.ckpt"))}
    assert plain <= {torch.Tensor, int, float, str, bool, type(None)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"accumulate": 2}, "accumulate was 1 and is 2"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"precision": "bf16-mixed"}, "precision was '32-true' and is 'bf16-mixed'"),
        ({"config": {"method": {"prior": "uniform"}}}, "config.method was None and is {'prior': 'uniform'}"),
    ],
)
def test_changed_settings_are_refused(tmp_path, options, said):
    train("tiny", tmp_path, limit_steps=1)
    with pytest.raises(ValueError, match=r"was made with other settings: .*Make them equal again to resume") as error:
        train("tiny", tmp_path, resume=True, **options)
    assert said in str(error.value)


def test_another_method_and_other_data_are_refused(tmp_path):
    train("tiny", tmp_path, limit_steps=1)
    with pytest.raises(ValueError, match=r"method was 'TinyMethod' and is 'Prototypical'; optimization.clip was 1.0"):
        train("vit", tmp_path, resume=True)
    from prototile.training.run import fit
    from training_cases import CASES

    other = {"optimization": CASES["tiny"][2], "epochs": 3, "accelerator": "cpu", "out": tmp_path, "resume": True}
    with pytest.raises(ValueError, match="batch was 8 and is 4"):
        fit(tiny(), loader(batch=4), **other)


def test_settings_in_a_checkpoint_are_json(tmp_path):
    train("tiny", tmp_path, limit_steps=1)
    settings = read(tmp_path / "checkpoints" / "last.ckpt")["prototile"]["settings"]
    assert json.loads(json.dumps(settings)) == settings
    assert settings["optimization"]["lr"]["class"] == "Cosine"
