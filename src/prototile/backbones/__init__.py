"""Backbones: from images to features."""

from prototile.backbones.backbone import Backbone

__all__ = ["Backbone"]
