"""Reading a directory of reference numbers: <item>.json describes cases, <item>.safetensors holds their tensors."""

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Case:
    """One case. Tensors that the adapter reads are its inputs; the others are to be computed."""

    item: str
    name: str
    label: str
    hyperparameters: dict[str, Any]
    tensors: dict[str, Tensor]
    tolerances: dict[str, Any]
    read: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name].clone()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def leaf(self, name: str) -> Tensor:
        """An input that gets a gradient."""
        return self[name].requires_grad_()

    def expected(self, name: str) -> Tensor:
        return self.tensors[name]

    def names(self) -> set[str]:
        return set(self.tensors)

    def tolerance(self, name: str) -> tuple[float, float]:
        """(rtol, atol): the case's own, or those of the first pattern in it that fits the name."""
        for patterns, value in self.tolerances.items():
            if isinstance(value, dict) and any(fnmatch(name, p.strip()) for p in patterns.split(",")):
                return value["rtol"], value["atol"]
        if "rtol" in self.tolerances:
            return self.tolerances["rtol"], self.tolerances["atol"]
        return 1e-9, 1e-11


def files_of(folder: Path, kind: str) -> list[Path]:
    """The descriptions of one kind in a directory and in its subdirectories; `kind` is a word that each of them has:
    "cases" for numbers of losses, "state_dicts" for checkpoints.
    """
    files = sorted(folder.glob("*.json")) or sorted(folder.glob("*/*.json"))
    if not files:
        raise FileNotFoundError(f"no reference numbers (*.json) in {folder}")
    return [file for file in files if kind in json.loads(file.read_text())]


def read_cases(folder: Path) -> list[Case]:
    """All cases of losses in a directory."""
    cases = []
    for file in files_of(folder, "cases"):
        tensors = load_file(file.with_suffix(".safetensors"))
        for case in json.loads(file.read_text())["cases"]:
            prefix = case["case"] + "."
            own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            cases.append(Case(file.stem, case["case"], case["label"], case["hyperparameters"], own, case["tolerance"]))
    return cases
