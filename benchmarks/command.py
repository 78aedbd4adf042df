"""The command line that benchmarks share: what to measure, on what, and where the results go."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

import report

RESULTS = Path(__file__).parent / "results"


class Measure(Protocol):
    """Measures the cases whose names contain one of the words in `only`; gives what goes into the JSON file."""

    def __call__(self, only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]: ...


def main(doc: str, name: str, measure: Measure, markdown: Callable[[dict[str, Any]], str]) -> None:
    """Measure as the command line says, or take the numbers there are, and write both files."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only cases whose names contain one of these words")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder for the results")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--report", action="store_true", help="measure nothing; write the tables of the results again")
    options = parser.parse_args()

    stem = name if options.device == "cpu" else f"{name}-{options.device}"
    if options.report:
        folder = options.out or RESULTS
        found = json.loads((folder / f"{stem}.json").read_text())
    else:
        partial = options.quick or options.only
        folder = options.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if partial else RESULTS)
        found = measure(options.only, torch.device(options.device), quick=options.quick)
    report.save(found, markdown(found), folder, stem)
    print(f"{stem}.json and {stem}.md are in {folder}")
