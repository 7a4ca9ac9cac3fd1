"""A small folder of stamps in Tux Paint's layout; their names are words that the tiny base can read."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = {
    "shapes/circle": ("A circle.", (200, 30, 40)),
    "shapes/cross": ("A cross; it is thin.", (30, 160, 60)),
    "signs/square": ("The square, which has four sides.", (40, 80, 220)),
    "signs/triangle": ("A triangle.", (240, 210, 40)),
}
WIDTH, HEIGHT = 40, 28


def write_stamps(folder: Path) -> Path:
    """Four stamps of one colour each, wider than high, with soft edges; and what is no stamp."""
    for name, (text, colour) in SHAPES.items():
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        alpha = Image.new("L", (4 * WIDTH, 4 * HEIGHT), 0)
        draw = ImageDraw.Draw(alpha)
        right, below = 4 * WIDTH - 1, 4 * HEIGHT - 1
        if "triangle" in name:
            draw.polygon([(0, below), (0, 0), (right, below)], fill=255)
        elif "square" in name:
            draw.rectangle([0, 0, right, below], fill=255)
        else:
            draw.ellipse([0, 0, right, below], fill=255)
        small = np.asarray(alpha.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
        pixels = np.dstack([np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3)), small])
        Image.fromarray(np.ascontiguousarray(pixels)).save(file)
        lines = [text, "de.utf8=Etwas anderes.", ""]
        file.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "signs/square.dat").write_text("nomirror\nnoflip\n")
    Image.new("RGBA", (WIDTH, HEIGHT)).save(folder / "shapes/circle_mirror.png")  # an alternate, no text
    (folder / "shapes/drawn.svg").write_text("<svg/>")
    (folder / "shapes/drawn.txt").write_text("A drawing.")
    return folder
