"""What README and docs show runs as it stands, and so do the examples."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from reference import read_cases
from started import script

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/data.md", "docs/evaluation.md", "docs/finetuning.md", "docs/training.md"]
)
def test_the_code_on_a_page_runs(page, monkeypatch, tmp_path):
    """Block after block, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "docs/data.md", "docs/evaluation.md", "docs/finetuning.md", "docs/training.md"],
)
def test_a_page_names_files_that_exist(page):
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / name).exists(), name


def test_the_readme_counts_the_reference_cases():
    cases = read_cases(ROOT / "tests" / "reference" / "losses")
    counted = f"{len(cases)} cases of {len({case.item for case in cases})} losses"
    assert counted in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_example_of_priors_runs(start):
    process = start(script, ROOT / "examples" / "marginals.py")
    assert process.wait() == 0, process.stderr
    assert "power law, as the data" in process.stdout


@pytest.mark.slow
def test_the_example_of_a_plain_loop_runs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["plain_loop.py", "--steps", "2", "--batch", "16"])
    runpy.run_path(str(ROOT / "examples" / "plain_loop.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert all(text in said for text in ("untrained: kNN", "step 2: loss", "trained: kNN"))
    assert len((ROOT / "examples" / "plain_loop.py").read_text().splitlines()) < 60


@pytest.mark.slow
def test_the_example_of_lightning_runs(start):
    process = start(script, ROOT / "examples" / "lightning_use.py", "--epochs", "1", "--images", "256")
    assert process.wait() == 0, process.stderr
    assert "epoch 1: invariance" in process.stdout


def test_the_example_of_views_runs(capsys, monkeypatch, tmp_path):
    out = tmp_path / "new" / "views.png"
    monkeypatch.setattr("sys.argv", ["views.py", "-n", "3", "-o", str(out)])
    runpy.run_path(str(ROOT / "examples" / "views.py"), run_name="__main__")
    assert "of the 10,000 in digits" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == (4 * (2 * 40 + 8 * 24), 4 * 3 * 40)
