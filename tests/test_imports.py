"""Imports point down only: each module of the package imports what its row below allows, and no more.

The sources are parsed, not imported, so that imports inside functions count too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "prototile"

FOUNDATIONS = "autograd distributed kernels precision types"
MATHEMATICS = "priors schedules sphere vmf assignments losses neighbors kmeans balancing regularizers"
NETWORKS = "heads backbones ema views"
PARTS = f"{FOUNDATIONS} {MATHEMATICS} {NETWORKS}"
USES = "checkpoints evaluation audit training reports recipes demo"

# What a module or subpackage may import of the package, besides itself: names of rows above its own.
# `__init__` stands for the public names, as in `from prototile import Uniform`.
ROWS = {
    # foundations
    "autograd": "",
    "distributed": "",
    "precision": "",
    "types": "",
    "kernels": "precision",
    # mathematics: tensors in, tensors out
    "priors": FOUNDATIONS,
    "schedules": FOUNDATIONS,
    "sphere": FOUNDATIONS,
    "vmf": FOUNDATIONS,
    "assignments": FOUNDATIONS,
    "losses": FOUNDATIONS,
    "neighbors": FOUNDATIONS,
    "kmeans": f"{FOUNDATIONS} assignments sphere",
    "balancing": f"{FOUNDATIONS} assignments priors neighbors losses",
    "regularizers": f"{FOUNDATIONS} assignments priors sphere neighbors losses",
    # networks
    "heads": f"{FOUNDATIONS} assignments sphere vmf",
    "backbones": FOUNDATIONS,
    "ema": FOUNDATIONS,
    "views": f"{FOUNDATIONS} schedules",
    # methods
    "methods": PARTS,
    # data
    "data": f"{FOUNDATIONS} schedules views",
    # using them; evaluation and audit know no methods and no training
    "checkpoints": f"{PARTS} methods",
    "evaluation": f"{PARTS} data",
    "audit": f"{FOUNDATIONS} {MATHEMATICS}",
    "training": f"{PARTS} methods data checkpoints evaluation audit",
    "reports": "types data evaluation audit",
    "recipes": "types",
    "demo": f"{PARTS} methods evaluation audit reports",
    # the whole
    "cli": f"{PARTS} methods data {USES} demo",
    "__init__": f"{PARTS} methods data {USES} demo cli",
    "__main__": "cli",
}

# Who alone may import these libraries.
LIBRARIES = {
    "jinja2": "reports",
    "jsonargparse": "cli",
    "lightning": "training",
    "lightning_fabric": "training",
    "matplotlib": "reports",
    "plotly": "reports",
    "pytorch_lightning": "training",
    "timm": "backbones training",
    "torch.distributed": "distributed",
}


def test_imports_point_down():
    assert list(violations(PACKAGE)) == []


def test_rows_name_only_rows_above():
    above = set()
    for name, allowed in ROWS.items():
        assert set(allowed.split()) <= above, name
        above.add(name)


def violations(package: Path) -> Iterator[str]:
    """What each file imports against the rules, in words."""
    files = sorted(package.rglob("*.py"))
    modules = {path.relative_to(package).parts[0].removesuffix(".py") for path in files}
    for name in sorted(modules - set(ROWS)):
        yield f"{name} has no row: add `{name}` to ROWS in {Path(__file__).name}"
    for path in files:
        parts = path.relative_to(package).with_suffix("").parts
        module = parts[0]
        for line, target in imports(ast.parse(path.read_text()), (package.name, *parts)):
            where = f"{path.relative_to(package)}:{line}: {module}"
            if target == package.name or target.startswith(f"{package.name}."):
                other = [*target.split("."), "__init__"][1]
                other = other if other in modules | set(ROWS) else "__init__"
                if other != module and module in ROWS and other not in ROWS[module].split():
                    yield f"{where} may not import {other}"
            else:
                for library, users in LIBRARIES.items():
                    if f"{target}.".startswith(f"{library}.") and module not in users.split():
                        yield f"{where} may not import {library} ({users} may)"


def imports(tree: ast.AST, parts: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that the module `parts` imports; uses of `torch.distributed` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                # one dot is the package that holds the module; for an __init__, its own
                base = ".".join(parts[:-level]) if level else ""
                source = ".".join(filter(None, [base, source]))
                yield from ((node.lineno, f"{source}.{name.name}") for name in names)
            case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
                yield node.lineno, "torch.distributed"


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("priors.py", "from prototile.methods import DINO", "priors may not import methods"),
        ("priors.py", "import prototile.assignments.naive", "priors may not import assignments"),
        ("priors.py", "from prototile import cli", "priors may not import cli"),
        ("priors.py", "from prototile import Uniform", "priors may not import __init__"),
        ("priors.py", "import prototile", "priors may not import __init__"),
        ("priors.py", "from . import heads", "priors may not import heads"),
        ("priors.py", "def f():\n    from .data import folder", "priors.py:2: priors may not import data"),
        ("losses/__init__.py", "from ..regularizers import KoLeo", "losses may not import regularizers"),
        ("losses/masked.py", "from .. import balancing", "losses may not import balancing"),
        ("evaluation/a/b.py", "from ...training import fit", "evaluation may not import training"),
        ("audit/a.py", "from prototile.methods import MSN", "audit may not import methods"),
        ("priors.py", "import torch.distributed as dist", "priors may not import torch.distributed"),
        ("priors.py", "from torch import distributed", "priors may not import torch.distributed"),
        ("ema.py", "from torch.distributed.nn import all_gather", "ema may not import torch.distributed"),
        ("ema.py", "import torch\ntorch.distributed.get_rank()", "ema may not import torch.distributed"),
        ("methods/a.py", "import lightning as L", "methods may not import lightning (training may)"),
        ("heads.py", "from timm.layers import trunc_normal_", "heads may not import timm"),
        ("training/a.py", "import os, jsonargparse", "training may not import jsonargparse"),
        ("audit/a.py", "import matplotlib.pyplot as plt", "audit may not import matplotlib"),
        ("novel.py", "", "add `novel` to ROWS"),
        ("novel/a.py", "import timm", "add `novel` to ROWS"),
    ],
)
def test_a_violation_is_found(tmp_path, file, source, found):
    assert found in "\n".join(planted(tmp_path, file, source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from prototile.priors import Uniform"),
        ("assignments/__init__.py", "from .naive import a\nfrom .. import distributed"),
        ("assignments/fused.py", "from prototile.assignments import naive\nfrom . import tiles"),
        ("balancing.py", "from .assignments.naive import a\nfrom . import priors"),
        ("cli.py", "import jsonargparse\nfrom prototile import recipes, training"),
        ("distributed.py", "import torch.distributed as dist\nfrom torch import distributed"),
        ("heads.py", "import torch.distributions\nimport torch.nn.functional as F"),
        ("training/a.py", "import timm.optim\nimport lightning.pytorch as pl\nfrom ..methods import DINO"),
    ],
)
def test_an_allowed_import_is_not(tmp_path, file, source):
    assert planted(tmp_path, file, source) == []


def planted(tmp_path: Path, file: str, source: str) -> list[str]:
    """The violations in a package that has this file only."""
    path = tmp_path / "prototile" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    return list(violations(tmp_path / "prototile"))
