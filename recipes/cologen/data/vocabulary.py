"""The closed vocabulary of the embedded world: every word that a caption or an instruction may use."""

from __future__ import annotations

from recipes.cologen.data.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES

CONTENT_WORDS: tuple[str, ...] = (*SIZES, *COLOURS, *SHAPES, "top", "bottom", "left", "right", *BACKGROUNDS)
"""Words that captions use, with `and` and `on`."""
FILLER_WORDS: tuple[str, ...] = ("a", "the", "at", "to", "of", "with", "in")
"""Words that carry no meaning of their own; pretraining sprinkles them in."""
PRETRAINING_VERBS: tuple[str, ...] = (
    *("copy", "trace", "frame", "dye", "keep", "drop", "put", "plus", "swap", "bring", "backdrop"),
)
"""How the base's pretraining asks for things (tools/pretraining/tasks.py); no stage uses these words."""
STAGE_WORDS: tuple[str, ...] = (
    *("draw", "box", "around", "cover", "mask", "any"),
    *("canny", "soft", "edge", "line", "art", "depth", "segmentation", "map", "image"),
    *("same", "object"),
    *("make", "remove", "add", "move", "replace", "change", "background"),
)
"""Words of the five stages; the base's pretraining never uses them."""
SPARE_WORDS: tuple[str, ...] = (
    *(
        "this",
        "turn",
        "into",
        "from",
        "erase",
        "insert",
        "mark",
        "outline",
        "paint",
        "picture",
        "scene",
        "show",
    ),
)
"""Words that no stage uses: room for a stage of your own. In pretraining they mean tasks in dialects, and
nothing outside them (tools/pretraining/wording.py)."""
VOCABULARY: tuple[str, ...] = (
    *(*CONTENT_WORDS, "and", "on"),
    *FILLER_WORDS,
    *PRETRAINING_VERBS,
    *STAGE_WORDS,
    *SPARE_WORDS,
)
MAX_TEXT_TOKENS = 20
"""The longest prompt of the world has 19 words; one more for the end-of-text token."""
