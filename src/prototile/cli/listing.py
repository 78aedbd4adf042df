"""`prototile recipes`: a table of the ready runs, from what their comments say."""

import shutil
import textwrap

from prototile.recipes import names, read


def listing() -> str:
    """All recipes: the paper's runs first by name, with method, data, paper, cost and what is expected."""
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 140))
    parts = []
    for name in names():
        notes = read(name).notes
        head = f"{name:26} {notes['method']}; {notes['data']}"
        body = f"{notes['paper']}. {notes['cost'].rstrip('.')}. {notes['result'].rstrip('.')}."
        gap = " " * 27
        parts.append(textwrap.fill(head, width, subsequent_indent=gap))
        parts.append(textwrap.fill(body, width, initial_indent=gap, subsequent_indent=gap))
    said = "prototile recipes NAME prints one; prototile pretrain --recipe NAME --data ... --out ... runs it."
    return "\n".join([*parts, "", said, ""])
