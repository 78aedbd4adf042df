"""Checkpoints: what a run leaves behind, and how it is read again."""

from prototile.checkpoints.atomic import write_atomically
from prototile.checkpoints.native import build, export, load_backbone, load_prototypes

__all__ = ["build", "export", "load_backbone", "load_prototypes", "write_atomically"]
