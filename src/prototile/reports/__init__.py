"""Reports: what runs and data look like. Matplotlib and jinja2 are imported here and nowhere else.

class_counts(counts, groups)    images of each class, from the largest on, with head, middle and tail
demo.page(result)               the page of `prototile demo`, HTML
audit.render_audit(audit)       the page of an audit, HTML; audit.table(audits) its numbers for a terminal
evaluations.render_evaluations(sets)    the page of records of evaluations, HTML

Pages are made by `page` (what all have alike) and `svg` (drawings whose colours follow light and dark).
"""

from prototile.reports.figures import class_counts

__all__ = ["class_counts"]
