"""The report of a run: scores measured on held-out examples, figures, and a page that shows them."""

from recipes.cologen.report.build import build_report

__all__ = ["build_report"]
