"""Methods: views in, a loss out."""

from prototile.methods.method import Clusters, Method, Terms

__all__ = ["Clusters", "Method", "Terms"]
