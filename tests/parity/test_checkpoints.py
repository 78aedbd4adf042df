"""Other projects' checkpoints: rebuilt as files, imported from there, and compared with the official networks.

`pytest tests/parity --reference DIR` runs any other directory of such cases.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import goldens
import imports
from reference import files_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_file" in metafunc.fixturenames:
        files = files_of(metafunc.config.getoption("--reference"), "state_dicts")
        metafunc.parametrize("case_file", files, ids=[path.stem for path in files])


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that is gone after the test: files of weights are large."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_all_outputs_are_the_official_ones(case_file: Path, folder: Path):
    case = goldens.golden(case_file)
    for network, expected in case.about["networks"].items():  # that the weights are the same
        made = sum(
            float(x.double().abs().sum()) for x in goldens.state(case.about, network).values() if x.is_floating_point()
        )
        assert made == pytest.approx(expected["abs_sum"], rel=1e-6), network
    torch.save(goldens.contents(case.about), folder / "file.pth")
    with torch.no_grad():
        assert imports.differences(case, folder / "file.pth") == {}
