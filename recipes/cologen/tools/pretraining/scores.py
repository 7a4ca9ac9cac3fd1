"""How well a base does what it is pretrained on: exact matches by the oracle on draws of their own."""

from __future__ import annotations

import numpy as np
import torch

from recipes.cologen.data import oracle
from recipes.cologen.data.record import Example
from recipes.cologen.flux import FluxModel, Sampling
from recipes.cologen.flux.sampling import denoise, starting_noise
from recipes.cologen.tools.pretraining.dialects import Dialects
from recipes.cologen.tools.pretraining.step import Settings, read_source
from recipes.cologen.tools.pretraining.tasks import CAPTIONED, UNNAMED, source_task, text_to_image
from recipes.cologen.training.validation.scores import to_pictures

HELD_OUT = 2**31
"""Seeds from here on are never trained on."""


@torch.no_grad()
def evaluate(model: FluxModel, dialects: Dialects, settings: Settings) -> dict[str, float]:
    """Exact-match scores by the oracle on held-out draws.

    Text-to-image, every source task asked by its own verb, and all that is asked in a dialect.
    """
    rng = np.random.default_rng((HELD_OUT, settings.seed))
    tasks = {"text-to-image": [text_to_image(rng) for _ in range(settings.num_evaluated)]}
    for example in (source_task(rng) for _ in range(8 * settings.num_evaluated)):
        if example.task != UNNAMED:
            name = example.task if example.meta["dialect"] is None else "in a dialect"
            tasks.setdefault(name, []).append(example)
    most = settings.num_evaluated
    return {name: _score(model, dialects, tasks[name][:most], settings.seed) for name in sorted(tasks)}


def _score(model: FluxModel, dialects: Dialects, examples: list[Example], seed: int) -> float:
    sampling = Sampling(height=16, width=16, steps=12, source_timestep="zero")
    text = model.encode_prompts([example.prompt for example in examples])
    source = read_source(model, dialects, examples, text)
    noise = starting_noise(model, len(examples), sampling, seed)
    drawn = model.decode(denoise(model, noise, text, source, sampling))
    results = [
        oracle.shows_caption(image, example) if example.task in CAPTIONED else oracle.score(example, image)
        for example, image in zip(examples, to_pictures(drawn), strict=True)
    ]
    return float(np.mean(results))
