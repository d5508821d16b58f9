"""Figures of the report, one module each.

They draw from files that other commands wrote and measure nothing. Every `draw_...` gives a matplotlib figure, whose
axes carry their units and whose title names scenario and test set.
"""

from specvit_training.figures.ceiling import draw_ceiling, plot_ceiling

__all__ = ["draw_ceiling", "plot_ceiling"]
