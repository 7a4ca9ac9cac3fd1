"""Trains the first stage with one loss of one rank that is no number: `... CONFIG OUTPUT`."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from recipes.cologen.config.run import load_config
from recipes.cologen.training import step
from tests.recipes.cologen.training.killing import quiet

if __name__ == "__main__":
    original, seen = step.batch_loss, 0

    def spoilt(*arguments: Any) -> Any:
        """Spoil the loss that is asked for."""
        global seen
        seen += 1
        loss, losses = original(*arguments)
        if seen == int(os.environ["SPOILT_LOSS"]) and os.environ["RANK"] == os.environ["SPOILT_RANK"]:
            return loss * math.nan, losses * torch.tensor([math.nan, 1, 1, 1])
        return loss, losses

    step.batch_loss = spoilt
    quiet(load_config(sys.argv[1]), Path(sys.argv[2]), "inpainting")
