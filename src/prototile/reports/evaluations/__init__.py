"""The page of evaluations: what the features of checkpoints are worth, protocol by protocol, beside each other.

render_evaluations(sets)    HTML, self-contained; of two sets with the differences, tested
Evaluations                 what it shows, for pages of other things too
by_checkpoint(records)      records, by the checkpoint that they are of

`sets` are records by the title of their checkpoint. Of records of the same protocol, options and test images the latest
is shown.
"""

from prototile.reports.evaluations.blocks import by_checkpoint
from prototile.reports.evaluations.rendering import Evaluations, render_evaluations

__all__ = ["Evaluations", "by_checkpoint", "render_evaluations"]
