"""What the README shows runs as it stands, and so do the examples."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from reference import read_cases

ROOT = Path(__file__).parents[1]


def test_the_readmes_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / name).exists(), name


def test_the_readme_counts_the_reference_cases():
    cases = read_cases(ROOT / "tests" / "reference" / "losses")
    counted = f"{len(cases)} cases of {len({case.item for case in cases})} losses"
    assert counted in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_example_of_priors_runs(capsys):
    runpy.run_path(str(ROOT / "examples" / "marginals.py"), run_name="__main__")
    assert "power law, as the data" in capsys.readouterr().out


def test_the_example_of_views_runs(capsys, monkeypatch, tmp_path):
    out = tmp_path / "new" / "views.png"
    monkeypatch.setattr("sys.argv", ["views.py", "-n", "3", "-o", str(out)])
    runpy.run_path(str(ROOT / "examples" / "views.py"), run_name="__main__")
    assert "of the 10,000 in digits" in capsys.readouterr().out
    assert Image.open(out).size == (10 * 4 * 40, 3 * 4 * 40)
