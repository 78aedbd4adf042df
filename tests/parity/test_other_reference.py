"""`--reference DIR` takes other numbers of the same form, and what it does not know fails."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from started import script

ROOT = Path(__file__).parents[2]


def write(folder: Path, item: str, *cases: dict[str, torch.Tensor]) -> None:
    described = [
        {"case": f"case{i}", "label": "", "hyperparameters": {}, "tolerance": {"rtol": 1e-9, "atol": 1e-11}}
        for i in range(len(cases))
    ]
    (folder / f"{item}.json").write_text(json.dumps({"cases": described}))
    tensors = {f"case{i}.{name}": x for i, case in enumerate(cases) for name, x in case.items()}
    save_file({name: x.clone() for name, x in tensors.items()}, folder / f"{item}.safetensors")


@pytest.fixture
def run(start, tmp_path, monkeypatch):
    """The exit code and output of the tests on what lies in the folder."""
    monkeypatch.chdir(ROOT)
    words = "tests/parity/test_parity.py", "-q", "--reference", str(tmp_path)
    plain = "--assert=plain", "-o", "addopts=--import-mode=importlib"  # what is imported already is not rewritten

    def run() -> tuple[int, str]:
        process = start(script, Path(pytest.__file__).with_name("__main__.py"), *words, *plain)
        return process.wait(), process.stdout + process.stderr

    return run


@pytest.mark.slow
def test_other_numbers(tmp_path, run):
    x = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1)
    loss = -((x * x.flip(0)).sum(1).mean() + 1) / 2
    right = {"p1": x, "p2": x, "z1": x, "z2": x.flip(0), "loss": loss}

    write(tmp_path, "simsiam_loss", right)
    code, output = run()
    assert code == 0, output

    write(tmp_path, "simsiam_loss", right, right | {"loss": loss + 1e-6}, right | {"forgotten": x})
    write(tmp_path, "unheard_of", {"x": x})
    code, output = run()
    assert code == 1
    assert "loss: Scalars are not close" in output
    assert "neither reads nor computes ['forgotten']" in output
    assert "no adapter for unheard_of" in output
    assert "4 failed, 2 passed" in output
