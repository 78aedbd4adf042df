"""The report of an audit.

render_audit(audit, ...)          HTML, self-contained
table(audits)                     a short table and the verdict, for a terminal
Pictures, neighbor_sheets         images that the page shows
Epoch                             a run over its epochs, from audits or from their JSON
"""

from prototile.reports.audit.epochs import Epoch
from prototile.reports.audit.pictures import Pictures, Sheet, neighbor_sheets
from prototile.reports.audit.rendering import render_audit
from prototile.reports.audit.text import table

__all__ = ["Epoch", "Pictures", "Sheet", "neighbor_sheets", "render_audit", "table"]
