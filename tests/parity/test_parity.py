"""Numbers of the official implementations: every case of every item, values and gradients.

`pytest tests/parity --reference DIR` runs any other directory of the same form. An item without an adapter fails,
and so does a tensor of a case that its adapter neither reads nor computes.
"""

from pathlib import Path

import pytest
import torch

import adapters
from prototile import assignments
from reference import Case, read_cases

BACKENDS = ("direct", "row", "stream", "naive")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("--reference")
    cases = read_cases(folder)
    if "case" in metafunc.fixturenames:
        runs = [
            pytest.param(case, backend, id=f"{case.item}-{case.name}-{backend}")
            for case in cases
            for backend in (BACKENDS if case.item in adapters.STREAMED else ("direct",))
        ]
        metafunc.parametrize(("case", "backend"), runs)
    if "item" in metafunc.fixturenames:
        metafunc.parametrize("item", sorted({case.item for case in cases}))


def test_every_item_has_an_adapter(item: str):
    assert item in adapters.ADAPTERS, f"no adapter for {item} in tests/parity/adapters.py"


def test_equals_the_official_code(case: Case, backend: assignments.plan.Backend):
    if case.item not in adapters.ADAPTERS:
        pytest.fail(f"no adapter for {case.item} in tests/parity/adapters.py")
    with assignments.backend(backend), assignments.scratch_budget(20_000):  # small: several blocks
        computed = adapters.ADAPTERS[case.item](case)
    for name, value in computed.items():
        rtol, atol = case.tolerance(name)
        expected = case.expected(name)
        if expected.dtype == torch.float32:  # stored in less than the tolerance asks for
            rtol = max(rtol, 1e-6)
        torch.testing.assert_close(
            torch.as_tensor(value).detach().to(expected.dtype).reshape(expected.shape),
            expected,
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    forgotten = case.names() - computed.keys() - case.read - adapters.IGNORED.keys()
    assert not forgotten, f"the adapter neither reads nor computes {sorted(forgotten)}"
