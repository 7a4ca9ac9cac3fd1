"""Trains the first stage with a loss that is no number in step 2 of one rank: `... CONFIG OUTPUT`."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

from recipes.cologen.config import load_config
from recipes.cologen.training import step
from tests.recipes.cologen.training.killing import quiet

if __name__ == "__main__":
    original, seen = step.batch_loss, 0

    def spoilt(*arguments: Any) -> Any:
        """Spoil the second loss."""
        global seen
        seen += 1
        loss, losses = original(*arguments)
        if seen == 2 and os.environ["RANK"] == os.environ["SPOILT_RANK"]:
            return loss * math.nan, losses._replace(task_loss=losses.task_loss * math.nan)
        return loss, losses

    step.batch_loss = spoilt
    quiet(load_config(sys.argv[1]), Path(sys.argv[2]), "inpainting")
