"""How fast pictures reach the model, by source, workers and caches; and what else a training step spends."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import datasets
import numpy as np
import torch
import webdataset
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console

from benchmarks.schema import Pipeline, SetName, StepShare
from benchmarks.timing import Case, spread, tidy
from recipes.cologen.caching import encoder
from recipes.cologen.caching.encoder import Encoder, open_encoder
from recipes.cologen.config import RunConfig, load_config
from recipes.cologen.config_data import DataSettings
from recipes.cologen.config_input import CacheSettings
from recipes.cologen.config_training import DropoutSettings
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.training import loop, step
from recipes.cologen.training.batches import Batch, batches
from recipes.cologen.training.filling import FixedExamples, fill
from recipes.cologen.training.run import train
from recipes.cologen.training.sources import training_records

STORED, FRAMED = (480, 640), (256, 256)
"""Height and width of the files, and of what is trained on."""
QUALITY = 90
WORDS = ["make", "it", "blue", "red", "a", "picture", *"abcdefghijklmnopqrstuvwxyz"]
SOURCES: tuple[Literal["folder", "parquet", "tar"], ...] = ("folder", "parquet", "tar")


def jpeg(seed: int) -> bytes:
    """A smooth picture with some grain, which compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(STORED[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
    grainy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(grainy).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write(folder: Path, kind: str, count: int) -> str:
    """Write pairs of pictures in a kind of source and give the path that a data set names them by."""
    folder.mkdir(parents=True)
    rows = [
        (jpeg(2 * number), jpeg(2 * number + 1), f"make it {WORDS[number % 6]}") for number in range(count)
    ]
    if kind == "parquet":
        table = [
            {"image": before, "text": text, "pairs": [pair_of(after, text)]} for before, after, text in rows
        ]
        datasets.Dataset.from_list(table).to_parquet(folder / "part.parquet")
        return f"parquet:{folder}/part.parquet"
    if kind == "tar":
        with webdataset.TarWriter(f"{folder}/part.tar") as shard:
            for number, (before, after, text) in enumerate(rows):
                line = {"text": text, "pairs": [pair_of("after.jpg", text)]}
                shard.write({"__key__": f"{number:05}", "jpg": before, "after.jpg": after, "json": line})
        return f"tar:{folder}/part.tar"
    lines = []
    for number, (before, after, text) in enumerate(rows):
        (folder / f"{number}-before.jpg").write_bytes(before)
        (folder / f"{number}-after.jpg").write_bytes(after)
        pairs = [pair_of(f"{number}-after.jpg", text)]
        lines.append(json.dumps({"file_name": f"{number}-before.jpg", "text": text, "pairs": pairs}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return f"folder:{folder}"


def pair_of(image: Any, prompt: str) -> dict[str, Any]:
    return {"task": "editing", "image": image, "prompt": prompt}


def settings(path: str) -> DataSettings:
    """The data settings of one set."""
    sets = {"made": {"layout": "own", "path": path}}
    return DataSettings.model_validate({"source": "sets", "sets": sets, "size": FRAMED})


def base() -> FluxModel:
    """A tiny FLUX with a VAE of FLUX's class, eight times smaller a side, two convolutions a level."""
    model = build_tiny_flux(WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 64, 64),
            latent_channels=16,
            norm_num_groups=8,
            shift_factor=0.1,
            scaling_factor=0.3,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    for module in model.modules():
        module.eval().requires_grad_(False)
    return model


# The ways in: each source, number of workers, and cache.

NO_DROPOUT = DropoutSettings(text=0, source=0)
CACHES: tuple[Literal["none", "full"], ...] = ("none", "full")
PREFETCHED = 2
"""Batches that a worker of torch's loader makes ahead."""


class Amount(NamedTuple):
    """How much is read."""

    pictures: int
    batch: int
    batches: int
    """Read in one run."""
    workers: tuple[int, ...]


AMOUNTS: dict[SetName, Amount] = {
    "smoke": Amount(pictures=4, batch=2, batches=1, workers=(0,)),
    "default": Amount(pictures=32, batch=8, batches=4, workers=(0, 1, 2)),
    "full": Amount(pictures=64, batch=8, batches=4, workers=(0, 1, 2)),
}


class Way(NamedTuple):
    """One way in."""

    source: Literal["folder", "parquet", "tar"]
    workers: int
    cache: Literal["none", "full"]


def ways_in(folder: Path, amount: Amount) -> Iterator[tuple[Way, Case]]:
    """All ways in; streams stay open, and what workers made ahead is thrown away before each run."""
    model, device = base(), torch.device("cpu")
    for source in SOURCES:
        records = training_records(settings(write(folder / source, source, amount.pictures))).stage("editing")
        kept = open_encoder(model, device, CacheSettings(folder=str(folder / "cache" / source)))
        fill(kept, FixedExamples(records.records, amount.pictures, "editing", NO_DROPOUT))
        for workers, cache in product(amount.workers, CACHES):
            sampler = BatchSampler(records.num_records, batch_size=amount.batch, seed=0)
            keyed = cache == "full"
            stream = batches(records.records, "editing", sampler, NO_DROPOUT, workers, keyed)
            encoder = kept if keyed else Encoder(model, device)
            yield Way(source, workers, cache), reading(stream, encoder, amount.batches, PREFETCHED * workers)


def reading(stream: Iterator[Batch], encoder: Encoder, count: int, ahead: int) -> Case:
    """Make the case that reads some batches and encodes them."""

    def run() -> None:
        for _ in range(count):
            batch = next(stream)
            encoder.images(batch.target, batch.keys.target)
            encoder.images(batch.source, batch.keys.source)
            encoder.prompts(batch.prompts, batch.keys.prompts)

    def clear() -> None:
        for _ in range(ahead):
            next(stream)

    return Case(run, clear)


# What a step of the tiny preset spends outside the model, taken from the training command itself.

PREPARING = (
    (FluxModel, "tokenize"),
    (encoder, "to_unit_range"),
    (step, "draw_noise"),
    (step, "draw_timesteps"),
    (step, "flow_sample"),
)
"""What prepares the model's input within a step."""
WARM_UP = 4
STEPS: dict[SetName, int] = {"smoke": WARM_UP + 6, "default": WARM_UP + 9, "full": WARM_UP + 17}


class StepClock:
    """Adds up, step by step, the seconds spent in named functions, and waiting for batches."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._now[name] += time.perf_counter() - start

        return wrapped

    def waited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The loop's stream of batches, its waits timed; a step ends when the next batch is asked for."""

        def wrapped(*arguments: Any) -> Any:
            stream, micro_batches = function(*arguments)

            def watched() -> Iterator[Any]:
                while True:
                    self._end_step()
                    start = time.perf_counter()
                    batch = next(stream)
                    self._now["waiting"] += time.perf_counter() - start
                    yield batch

            return watched(), micro_batches

        return wrapped

    def _end_step(self) -> None:
        end = time.perf_counter()
        self.rows.append({**self._now, "all": end - self._start})
        self._now, self._start = defaultdict(float), end


def tiny(stage: str, workers: int, steps: int, batch_size: int) -> RunConfig:
    """The tiny preset with one short stage, which has no veterans."""
    row = f"{{steps: {steps}, batch_size: {batch_size}, lr: 1.0e-2, rho: 1.0, alpha: 0.0, init: zero}}"
    quiet = ["validation.samples=0", f"logging.checkpoint_every={10 * steps}"]
    return load_config("tiny", [f"stages={{{stage}: {row}}}", f"machine.workers={workers}", *quiet])


def share(folder: Path, stage: str, workers: int, steps: int, batch_size: int = 64) -> StepShare:
    """Train a stage of the tiny preset by the real loop, and say where its steps' time went."""
    clock = StepClock()
    with ExitStack() as patched:
        for place, name in PREPARING:
            patched.enter_context(patch.object(place, name, clock.timed("preparing", getattr(place, name))))
        patched.enter_context(patch.object(loop, "train_step", clock.timed("step", loop.train_step)))
        patched.enter_context(patch.object(loop, "_stream", clock.waited(loop._stream)))
        train(tiny(stage, workers, steps, batch_size), folder, "all", Console(file=io.StringIO()))
    # The first row ends where the first batch is asked for; the last step ends with the run, not with a wait.
    return share_of(stage, workers, clock.rows[1 + WARM_UP :])


def share_of(stage: str, workers: int, rows: list[dict[str, float]]) -> StepShare:
    """Medians over steps."""
    rest = [row["all"] - row["step"] - row["waiting"] for row in rows]
    outside = [(row["all"] - row["step"] + row["preparing"]) / row["all"] for row in rows]

    def middle(values: list[float], scale: float = 1e3) -> float:
        return tidy(scale * statistics.median(values))

    return StepShare(
        stage=stage,
        workers=workers,
        steps=len(rows),
        step_ms=middle([row["all"] for row in rows]),
        waiting_ms=middle([row["waiting"] for row in rows]),
        preparing_ms=middle([row["preparing"] for row in rows]),
        rest_ms=middle(rest),
        outside=middle(outside, 1.0),
    )


def pipelines(ways: dict[str, Way], seconds: dict[str, list[float]], amount: Amount) -> list[Pipeline]:
    """Turn the seconds of each way in into examples a second."""
    found, images = [], amount.batch * amount.batches
    for name, way in ways.items():
        speed = spread([images / one for one in seconds[name]])
        found.append(Pipeline(**way._asdict(), images_per_second=speed.median, iqr=speed.iqr))
    return found


def shares(folder: Path, chosen: SetName) -> list[StepShare]:
    """Measure the steps of every stage of the tiny preset; of the first one alone in the smallest set."""
    stages = list(COLOGEN_STAGES)[: 1 if chosen == "smoke" else None]
    workers, batch = (0, 4) if chosen == "smoke" else (2, 64)
    return [share(folder / stage, stage, workers, STEPS[chosen], batch) for stage in stages]


def setup(amount: Amount) -> dict[str, int | str]:
    """Write down what is read."""
    return {
        "stored": f"{STORED[0]}x{STORED[1]} JPEG, quality {QUALITY}",
        "trained": f"{FRAMED[0]}x{FRAMED[1]}",
        "number": amount.pictures,
        "batch": amount.batch,
    }
