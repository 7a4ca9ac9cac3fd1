"""The model card that goes into a pool's folder: how to load it, and that `import prw` comes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prw.tuner.config import PrwConfig

README = "README.md"
FIRST = "import prw"
"""What a reader of the card must do before anything else, and how a card that says so is told."""

CARD = """---
library_name: peft
tags:
- prw
- routed-lora
base_model: {base}
---

# A PRW pool: {experts}

Routed LoRA experts on key and value projections. One router per attention block sends every {item} to one
expert.

```python
import prw                     # first: it tells peft, transformers and diffusers what a PRW folder is

weave = prw.load(model, "path/to/this/folder")
```

After `import prw`, `peft.PeftModel.from_pretrained(model, "path/to/this/folder")` and transformers'
`load_adapter` read it too; for a diffusers pipeline: `prw.load_pipeline(pipe, "path/to/this/folder")`.

| | |
|---|---|
| experts, oldest first | {experts} |
| rank, scale | {rank}, {scale} |
| granularity, gate | {item}, {gate} |
"""


def model_card(config: PrwConfig) -> str:
    """Write the card of a pool."""
    settings = config.settings()
    return CARD.format(
        base=config.base_model_name_or_path or "unknown",
        experts=", ".join(config.experts) or "none yet",
        rank=settings.rank,
        scale=settings.scale,
        item=settings.granularity,
        gate=settings.gate,
    )


def put_card(folder: Path, config: PrwConfig) -> None:
    """Make a folder's card say `import prw`, keeping what a host or a user wrote into it.

    PEFT writes a card that does not know of prw, transformers none at all; where there is one, how to load
    the pool comes right after its header.
    """
    file = folder / README
    if not file.is_file():
        file.write_text(model_card(config), encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    if FIRST in text:
        return
    header, body = split_header(text)
    ours = split_header(model_card(config))[1]
    file.write_text(f"{header}{ours.strip()}\n\n{body.lstrip()}", encoding="utf-8")


def split_header(text: str) -> tuple[str, str]:
    """Split a card into its YAML header, which may be missing, and its body."""
    start, *rest = text.split("\n---\n", 1)
    if not text.startswith("---\n") or not rest:
        return "", text
    return f"{start}\n---\n\n", rest[0]
