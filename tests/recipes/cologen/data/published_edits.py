"""Writes a few rows of each published set of edits, with exactly its columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets

from recipes.cologen.config.data import SetSettings
from tests.recipes.cologen.data.published import INTEGER, NUMBER, PICTURE, TEXT, parquet, picture


def omniedit(folder: Path) -> SetSettings:
    row = {
        "omni_edit_id": "t_1",
        "task": "addition",
        "src_img": picture(13),
        "edited_img": picture(14),
        "edited_prompt_list": ["add a hat", "Place a hat on his head."],
        "width": 40,
        "height": 24,
        "sc_score_1": 9,
        "sc_score_2": 10,
        "sc_reasoning": "",
        "pq_score": 9,
        "pq_reasoning": "",
        "o_score": 9.5,
    }
    features = {
        "omni_edit_id": TEXT,
        "task": TEXT,
        "src_img": PICTURE,
        "edited_img": PICTURE,
        "edited_prompt_list": datasets.List(TEXT),
        "width": INTEGER,
        "height": INTEGER,
        "sc_score_1": INTEGER,
        "sc_score_2": INTEGER,
        "sc_reasoning": TEXT,
        "pq_score": INTEGER,
        "pq_reasoning": TEXT,
        "o_score": NUMBER,
    }
    return SetSettings(layout="omniedit", path=parquet(folder, [row, {**row, "o_score": 7.0}], features))


def magicbrush(folder: Path) -> SetSettings:
    row = {
        "img_id": "242679",
        "turn_index": 1,
        "source_img": picture(13),
        "mask_img": picture(15),
        "instruction": "let the asparagus be replaced",
        "target_img": picture(14),
    }
    features = {
        "img_id": TEXT,
        "turn_index": datasets.Value("int32"),
        "source_img": PICTURE,
        "mask_img": PICTURE,
        "instruction": TEXT,
        "target_img": PICTURE,
    }
    return SetSettings(layout="magicbrush", path=parquet(folder, [row, {**row, "turn_index": 2}], features))


def ultraedit(folder: Path) -> SetSettings:
    scores = ("clip_sim_source", "clip_sim_target", "clip_sim_dir", "clip_sim_image", "dinov2_sim", "ssim")
    row = {
        **dict.fromkeys(scores, 0.5),
        "source_caption": "a dog",
        "target_caption": "a dog in a hat",
        "idx": 1,
        "edit_prompt": "add a hat",
        "edit_object": "dog",
        "source_image": picture(13),
        "edited_image": picture(14),
        "mask_image": picture(15),
    }
    features = {
        **dict.fromkeys(scores, NUMBER),
        "source_caption": TEXT,
        "target_caption": TEXT,
        "idx": INTEGER,
        "edit_prompt": TEXT,
        "edit_object": TEXT,
        "source_image": PICTURE,
        "edited_image": PICTURE,
        "mask_image": PICTURE,
    }
    return SetSettings(layout="ultraedit", path=parquet(folder, [row, {**row, "ssim": 0.2}], features))


def instructpix2pix(folder: Path) -> SetSettings:
    row = {
        "original_prompt": "a dog",
        "original_image": picture(13),
        "edit_prompt": "add a hat",
        "edited_prompt": "a dog in a hat",
        "edited_image": picture(14),
    }
    features = {
        "original_prompt": TEXT,
        "original_image": PICTURE,
        "edit_prompt": TEXT,
        "edited_prompt": TEXT,
        "edited_image": PICTURE,
    }
    return SetSettings(layout="instructpix2pix", path=parquet(folder, [row], features))


def imgedit(folder: Path) -> SetSettings:
    (folder / "images").mkdir()
    for number in (13, 14):
        picture(number).save(folder / f"images/{number}.png")
    row = {"input_images": ["13.png"], "output_images": ["14.png"], "prompt": "add a hat"}
    features = {**dict.fromkeys(("input_images", "output_images"), datasets.List(TEXT)), "prompt": TEXT}
    path = parquet(folder, [row, {**row, "input_images": ["13.png", "14.png"]}], features)
    return SetSettings(layout="imgedit", path=path, images=f"{folder}/images")


EDITS: dict[str, Callable[[Path], SetSettings]] = {
    writer.__name__: writer for writer in (omniedit, magicbrush, ultraedit, instructpix2pix, imgedit)
}
"""By layout."""
