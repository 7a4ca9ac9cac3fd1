"""The model card that goes into a pool's folder: how to load it, and that `import prw` comes first."""

from __future__ import annotations

from prw.tuner import PrwConfig

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
`load_adapter` read it too.

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
