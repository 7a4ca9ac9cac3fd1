"""The look of the report: colours and the one way a figure becomes a PNG, without pyplot's global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

RIGHT = "#1b7837"
WRONG = "#b2182b"
MUTED = "#666666"
TARGET_LINE = "#d95f02"
# One colour per task in every figure (Okabe-Ito, told apart by colour-blind readers).
TASK_COLOURS = {
    "inpainting": "#0072b2",
    "grounding": "#e69f00",
    "control": "#009e73",
    "customization": "#cc79a7",
    "editing": "#d55e00",
}


def save_png(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path` and return the path.

    The fixed metadata keeps the bytes equal when the same numbers are drawn again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return path
