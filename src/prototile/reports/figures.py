"""Figures: each takes what was measured and gives a matplotlib figure, without pyplot and its state.

class_counts    images of each class, from the largest on
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from prototile.data.longtail import ClassCounts, Groups, shortened

COLOURS = {"head": "#1b4f72", "middle": "#2e86c1", "tail": "#85c1e9"}
NAMED_CLASSES = 30  # with more, names would not be readable
LOG_IMBALANCE = 10


def class_counts(counts: ClassCounts, groups: Groups | None = None) -> Figure:
    """Images of each class, from the largest on, coloured by head, middle and tail (`counts.groups` by default).

    The scale is logarithmic where the imbalance is above 10.
    """
    groups = counts.groups if groups is None else groups
    ranked = np.argsort(-counts.counts, kind="stable")
    edges = np.arange(len(ranked) + 1) + 0.5
    logarithmic = counts.imbalance > LOG_IMBALANCE
    lowest = 0.7 * max(int(counts.counts.min()), 1) if logarithmic else 0

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, ids in groups._asdict().items():
        if len(ids):
            heights = np.where(np.isin(ranked, ids), counts.counts[ranked], np.nan)
            label = f"{name}: {len(ids):,} classes\n{counts.counts[ids].sum():,} images"
            axes.stairs(heights, edges, baseline=lowest, fill=True, color=COLOURS[name], label=label)
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_ylim(bottom=lowest)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("images")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if len(ranked) <= NAMED_CLASSES:
        names = [shortened(counts.names[k]) for k in ranked]
        axes.set_xticks(np.arange(len(ranked)) + 1, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.vlines(edges[1:-1], lowest, counts.counts[ranked[:-1]], color="white", linewidth=1.5)
    else:
        axes.set_xlabel("class, from the largest on")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(groups), frameon=False)
    return figure
