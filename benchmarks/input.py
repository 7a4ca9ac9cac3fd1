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
from recipes.cologen.config.data import CacheSettings, DataSettings
from recipes.cologen.config.run import load_config
from recipes.cologen.config.training import DropoutSettings
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.training import loop, step
from recipes.cologen.training.input.batches import Batch, batches
from recipes.cologen.training.input.filling import FixedExamples, fill
from recipes.cologen.training.run import train

STORED, FRAMED, QUALITY = (480, 640), (256, 256), 90
"""Height and width of the files, and of what is trained on; the files' quality."""
WORDS = ["make", "it", "blue", "red", "a", "picture", *"abcdefghijklmnopqrstuvwxyz"]
Source, Kept = Literal["folder", "parquet", "tar"], Literal["none", "full"]
SOURCES: tuple[Source, ...] = ("folder", "parquet", "tar")
CACHES: tuple[Kept, ...] = ("none", "full")
NO_DROPOUT = DropoutSettings(text=0, source=0)
PREFETCHED = 2
"""Batches that a worker of torch's loader makes ahead."""


class Amount(NamedTuple):
    """How much is read: pictures in all, examples of a batch, batches of a run, numbers of workers."""

    pictures: int
    batch: int
    batches: int
    workers: tuple[int, ...]


AMOUNTS: dict[SetName, Amount] = {
    "smoke": Amount(4, 2, 1, (0,)),
    "default": Amount(32, 8, 4, (0, 1, 2)),
    "full": Amount(64, 8, 4, (0, 1, 2)),
}


def setup(chosen: SetName) -> dict[str, int | str]:
    """Write down what is read."""
    stored, trained = (f"{height}x{width}" for height, width in (STORED, FRAMED))
    words = {"stored": f"{stored} JPEG, quality {QUALITY}", "trained": trained}
    return {**words, "number": AMOUNTS[chosen].pictures, "batch": AMOUNTS[chosen].batch}


def jpeg(seed: int) -> bytes:
    """A smooth picture with some grain, which compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(STORED[::-1], Image.Resampling.BICUBIC)).astype(np.float32)
    grainy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(grainy).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write(folder: Path, kind: Source, count: int) -> str:
    """Write pairs of pictures in a kind of source and give the path that a data set names them by."""
    folder.mkdir(parents=True)
    rows = [(jpeg(2 * at), jpeg(2 * at + 1), f"make it {WORDS[at % 6]}") for at in range(count)]

    def about(after: bytes | str, text: str) -> dict[str, Any]:
        return {"text": text, "pairs": [{"task": "editing", "image": after, "prompt": text}]}

    if kind == "parquet":
        table = [{"image": before, **about(after, text)} for before, after, text in rows]
        datasets.Dataset.from_list(table).to_parquet(folder / "part.parquet")
        return f"parquet:{folder}/part.parquet"
    if kind == "tar":
        with webdataset.TarWriter(f"{folder}/part.tar") as shard:
            for at, (before, after, text) in enumerate(rows):
                files = {"jpg": before, "after.jpg": after, "json": about("after.jpg", text)}
                shard.write({"__key__": f"{at:05}", **files})
        return f"tar:{folder}/part.tar"
    lines = []
    for at, (before, after, text) in enumerate(rows):
        (folder / f"{at}-before.jpg").write_bytes(before)
        (folder / f"{at}-after.jpg").write_bytes(after)
        lines.append(json.dumps({"file_name": f"{at}-before.jpg", **about(f"{at}-after.jpg", text)}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return f"folder:{folder}"


def base() -> FluxModel:
    """A tiny FLUX with a VAE of FLUX's class, eight times smaller a side, two convolutions a level."""
    model = build_tiny_flux(WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        shape = {"down_block_types": down, "up_block_types": up, "block_out_channels": (16, 32, 64, 64)}
        scale = {"latent_channels": 16, "norm_num_groups": 8, "shift_factor": 0.1, "scaling_factor": 0.3}
        model.vae = AutoencoderKL(**shape, **scale, use_quant_conv=False, use_post_quant_conv=False)
    for module in model.modules():
        module.eval().requires_grad_(False)
    return model


class Way(NamedTuple):
    """One way in."""

    source: Source
    workers: int
    cache: Kept


def ways_in(folder: Path, chosen: SetName) -> Iterator[tuple[Way, Case]]:
    """All ways in; streams stay open, and what workers made ahead is thrown away before each run."""
    model, device, amount = base(), torch.device("cpu"), AMOUNTS[chosen]
    for source in SOURCES:
        sets = {"made": {"layout": "own", "path": write(folder / source, source, amount.pictures)}}
        settings = DataSettings.model_validate({"source": "sets", "sets": sets, "size": FRAMED})
        records = training_records(settings).stage("editing")
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


def pipeline(way: Way, seconds: list[float], chosen: SetName) -> Pipeline:
    """Turn the seconds of a way in into examples a second."""
    images = AMOUNTS[chosen].batch * AMOUNTS[chosen].batches
    speed, iqr = spread([images / one for one in seconds])
    return Pipeline(**way._asdict(), images_per_second=speed, iqr=iqr)


PREPARING = (
    (FluxModel, "tokenize"),
    (encoder, "to_unit_range"),
    (step, "sample_noise"),
    (step, "sample_timesteps"),
    (step, "interpolate"),
)
"""What prepares the model's input within a step."""
WARM_UP = 4
STEPS: dict[SetName, int] = {"smoke": WARM_UP + 6, "default": WARM_UP + 9, "full": WARM_UP + 17}


class StepClock:
    """Adds up, step by step, the seconds spent in named functions, and waiting for batches."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.start = time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add a function's time under a name."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.now[name] += time.perf_counter() - start

        return wrapped

    def waited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The loop's stream of batches, its waits timed; a step ends when the next batch is asked for."""

        def watched(stream: Iterator[Any]) -> Iterator[Any]:
            while True:
                self.rows.append({**self.now, "all": time.perf_counter() - self.start})
                self.now, self.start = defaultdict(float), time.perf_counter()
                yield self.timed("waiting", next)(stream)

        def wrapped(*arguments: Any) -> Any:
            stream, micro_batches = function(*arguments)
            return watched(stream), micro_batches

        return wrapped


def share(folder: Path, stage: str, workers: int, steps: int, batch_size: int) -> StepShare:
    """Train one short stage of the tiny preset by the real loop, and say where its steps' time went."""
    row = f"{{steps: {steps}, batch_size: {batch_size}, lr: 1.0e-2, rho: 1.0, alpha: 0.0, init: zero}}"
    quiet = ["validation.samples=0", f"logging.checkpoint_every={10 * steps}"]
    config = load_config("tiny", [f"stages={{{stage}: {row}}}", f"machine.workers={workers}", *quiet])
    clock = StepClock()
    with ExitStack() as patched:
        for place, name in PREPARING:
            patched.enter_context(patch.object(place, name, clock.timed("preparing", getattr(place, name))))
        patched.enter_context(patch.object(loop, "train_step", clock.timed("step", loop.train_step)))
        patched.enter_context(patch.object(loop, "_stream", clock.waited(loop._stream)))
        train(config, folder, "all", Console(file=io.StringIO()))
    # The first row ends where the first batch is asked for; the last step ends with the run, not with a wait.
    return share_of(stage, workers, clock.rows[1 + WARM_UP :])


def share_of(stage: str, workers: int, rows: list[dict[str, float]]) -> StepShare:
    """Medians over steps."""

    def middle(of: Callable[[dict[str, float]], float], scale: float = 1e3) -> float:
        return tidy(scale * statistics.median(map(of, rows)))

    parts = {f"{name}_ms": middle(lambda row, name=name: row[name]) for name in ("waiting", "preparing")}
    parts["step_ms"] = middle(lambda row: row["all"])
    parts["rest_ms"] = middle(lambda row: row["all"] - row["step"] - row["waiting"])
    outside = middle(lambda row: (row["all"] - row["step"] + row["preparing"]) / row["all"], 1.0)
    return StepShare(stage=stage, workers=workers, steps=len(rows), outside=outside, **parts)


def shares(folder: Path, chosen: SetName) -> list[StepShare]:
    """Measure the steps of every stage of the tiny preset; of the first one alone in the smallest set."""
    stages = list(COLOGEN_STAGES)[: 1 if chosen == "smoke" else None]
    workers, batch = (0, 4) if chosen == "smoke" else (2, 64)
    return [share(folder / stage, stage, workers, STEPS[chosen], batch) for stage in stages]
