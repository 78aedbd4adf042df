"""Reports: what runs and data look like. Matplotlib is imported here and nowhere else.

class_counts(counts, groups)    images of each class, from the largest on, with head, middle and tail
"""

from prototile.reports.figures import class_counts

__all__ = ["class_counts"]
