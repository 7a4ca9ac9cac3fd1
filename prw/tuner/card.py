"""The model card of a pool's folder: how to load it, and that `import prw` comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from prw.config import PoolSettings

README = "README.md"
TAGS = ["prw", "routed-lora"]
FIRST = "import prw"
"""What a reader of the card must do before anything else; a card that says so is left alone."""

CARD = """# A PRW pool: {experts}

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


def model_card(experts: Sequence[str], settings: PoolSettings, base: str | None) -> ModelCard:
    """Write the card of a pool.

    Args:
        experts: Names of the experts, oldest first.
        settings: The pool's settings.
        base: Name or path of the base model, where it is known.
    """
    data = ModelCardData(library_name="peft", tags=TAGS, base_model=base or "unknown")
    text = CARD.format(
        experts=", ".join(experts) or "none yet",
        rank=settings.rank,
        scale=settings.scale,
        item=settings.granularity,
        gate=settings.gate,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def put_card(folder: Path, card: ModelCard) -> None:
    """Put a pool's card into a folder, keeping what a host or a user wrote into the one that is there.

    PEFT writes a card that does not mention prw, transformers none at all; where there is one, how to load
    the pool comes right after its header.
    """
    file = folder / README
    if not file.is_file():
        card.save(file)
        return
    text = file.read_text(encoding="utf-8")
    if FIRST in text:
        return
    try:
        found = ModelCard(text)
    except (ValueError, YAMLError):  # a header that cannot be read
        file.write_text(f"{text.rstrip()}\n\n{card.text.strip()}\n", encoding="utf-8")
        return
    if not found.data.to_dict():  # type: ignore[no-untyped-call]
        found.data = card.data
    found.text = f"\n{card.text.strip()}\n\n{found.text.lstrip()}"
    found.save(file)
