"""Checkpoints: what a run leaves behind, and how it is read again; other projects' too.

load          any checkpoint -> `Imported`: backbone, heads, and what the file tells of them
export        a run's own weights, and `load_backbone`, `load_prototypes` for them
"""

from prototile.checkpoints.atomic import write_atomically
from prototile.checkpoints.imported import Imported, ImportedHead
from prototile.checkpoints.loading import load
from prototile.checkpoints.native import build, export, load_backbone, load_prototypes

__all__ = [
    "Imported",
    "ImportedHead",
    "build",
    "export",
    "load",
    "load_backbone",
    "load_prototypes",
    "write_atomically",
]
