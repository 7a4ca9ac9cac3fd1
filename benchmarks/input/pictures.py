"""Pictures to read, in every kind of source, and a tiny base with a VAE of FLUX's class to encode them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import webdataset
from diffusers import AutoencoderKL
from PIL import Image

from recipes.cologen.config.data import DataSettings
from recipes.cologen.flux.model import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux

STORED, FRAMED = (480, 640), (256, 256)
"""Height and width of the files, and of what is trained on."""
QUALITY = 90
WORDS = ["make", "it", "blue", "red", "a", "picture", *"abcdefghijklmnopqrstuvwxyz"]
SOURCES = ("folder", "parquet", "tar")


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
            {"image": before, "text": text, "pairs": [_pair(after, text)]} for before, after, text in rows
        ]
        datasets.Dataset.from_list(table).to_parquet(folder / "part.parquet")
        return f"parquet:{folder}/part.parquet"
    if kind == "tar":
        with webdataset.TarWriter(f"{folder}/part.tar") as shard:
            for number, (before, after, text) in enumerate(rows):
                line = {"text": text, "pairs": [_pair("after.jpg", text)]}
                shard.write({"__key__": f"{number:05}", "jpg": before, "after.jpg": after, "json": line})
        return f"tar:{folder}/part.tar"
    lines = []
    for number, (before, after, text) in enumerate(rows):
        (folder / f"{number}-before.jpg").write_bytes(before)
        (folder / f"{number}-after.jpg").write_bytes(after)
        pairs = [_pair(f"{number}-after.jpg", text)]
        lines.append(json.dumps({"file_name": f"{number}-before.jpg", "text": text, "pairs": pairs}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return f"folder:{folder}"


def _pair(image: Any, prompt: str) -> dict[str, Any]:
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
