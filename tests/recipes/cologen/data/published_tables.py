"""Writes a few rows of each data set that is published as a table or a list, with exactly its columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from recipes.cologen.config.data import SetSettings
from tests.recipes.cologen.data.published import (
    INTEGER,
    NUMBER,
    PICTURE,
    TEXT,
    WRITERS,
    outline,
    parquet,
    picture,
    pixels,
    rectangle,
    write_json,
)
from tests.recipes.cologen.data.published_edits import EDITS


def refcoco(folder: Path) -> SetSettings:
    (folder / "coco/train2014").mkdir(parents=True)
    name = "COCO_train2014_000000581857.jpg"
    picture(7).save(folder / "coco/train2014" / name)
    annotation = {
        "segmentation": [outline(4, 6, 14, 18)],
        "bbox": [4, 6, 10, 12],
        "category_id": 1,
        "id": 1719310,
    }
    sentences = [
        {"raw": raw, "sent": raw.lower(), "sent_id": number, "tokens": raw.lower().split()}
        for number, raw in enumerate(("The lady in blue", "woman at left"))
    ]
    row = {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": sentences,
        "category_id": 1,
        "raw_anns": json.dumps(annotation),
        "raw_image_info": "{}",
        "raw_sentences": "[]",
        "image_path": f"coco/train2014/{name}",
        "bbox": [4.0, 6.0, 14.0, 18.0],
        "captions": ["two women"],
        "global_image_id": "coco.581857",
        "anns_id": "coco.1719310",
    }
    sentence = {"raw": TEXT, "sent": TEXT, "sent_id": INTEGER, "tokens": datasets.List(TEXT)}
    features = {
        "sent_ids": datasets.List(INTEGER),
        "file_name": TEXT,
        "ann_id": INTEGER,
        "ref_id": INTEGER,
        "image_id": INTEGER,
        "split": TEXT,
        "sentences": datasets.List(sentence),
        "category_id": INTEGER,
        "raw_anns": TEXT,
        "raw_image_info": TEXT,
        "raw_sentences": TEXT,
        "image_path": TEXT,
        "bbox": datasets.List(NUMBER),
        "captions": datasets.List(TEXT),
        "global_image_id": TEXT,
        "anns_id": TEXT,
    }
    path = parquet(folder, [row, {**row, "split": "testA"}], features)
    return SetSettings(layout="refcoco", path=path, images=f"{folder}/coco")


def multigen(folder: Path) -> SetSettings:
    rows = [{"image": picture(8), "text": "a house by the sea"}]
    return SetSettings(layout="multigen", path=parquet(folder, rows, {"image": PICTURE, "text": TEXT}))


def multigen_depth(folder: Path) -> SetSettings:
    ramp = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 2 + 10, (24, 1))).convert("RGB")
    rows = [{"image": picture(8), "text": "a house by the sea", "control_depth": ramp}]
    features = {"image": PICTURE, "text": TEXT, "control_depth": PICTURE}
    return SetSettings(layout="multigen_depth", path=parquet(folder, rows, features))


def classes() -> np.ndarray:
    numbers = np.full((24, 40), 255, np.uint8)
    numbers[rectangle(4, 6, 14, 18)] = 12
    numbers[0, 0] = 3  # too small to be an object
    return numbers


def captioned_ade20k(folder: Path) -> SetSettings:
    rows = [
        {
            "image": picture(9),
            "control_seg": picture(10),
            "seg_map": Image.fromarray(classes()),
            "prompt": "a room with a sofa",
        }
    ]
    features = {"image": PICTURE, "control_seg": PICTURE, "seg_map": PICTURE, "prompt": TEXT}
    return SetSettings(layout="captioned_ade20k", path=parquet(folder, rows, features))


def captioned_cocostuff(folder: Path) -> SetSettings:
    lists = datasets.List(datasets.List(datasets.Value("uint8")))
    rows = [
        {
            "image": picture(9),
            "control_seg": picture(10),
            "prompt": "a cat",
            "image_path": "a.jpg",
            "semantic_seg_map": classes().tolist(),
            "panoptic_seg_map": classes().tolist(),
        }
    ]
    features = {
        "image": PICTURE,
        "control_seg": PICTURE,
        "prompt": TEXT,
        "semantic_seg_map": lists,
        "panoptic_seg_map": lists,
        "image_path": TEXT,
    }
    return SetSettings(layout="captioned_cocostuff", path=parquet(folder, rows, features))


def side_by_side() -> Image.Image:
    """Two pictures of 16 pixels, each with a white border of 8."""
    sheet = Image.new("RGB", (64, 32), "white")
    for place in (0, 1):
        sheet.paste(Image.fromarray(pixels(20 + place, 16, 16)), (8 + 32 * place, 8))
    return sheet


def subjects200k(folder: Path) -> SetSettings:
    scores = dict.fromkeys(("compositeStructure", "objectConsistency", "imageQuality"), 5)
    description = {
        "item": "a mug",
        "description_0": "A mug on a desk.",
        "description_1": "A mug in the snow.",
        "category": "kitchen",
        "description_valid": True,
    }
    row = {"image": side_by_side(), "collection": "collection_2", "quality_assessment": scores}
    row["description"] = description
    low = {**row, "quality_assessment": {**scores, "imageQuality": 4}}
    wrong = {**row, "description": {**description, "description_valid": False}}
    unscored = {**row, "quality_assessment": dict.fromkeys(scores)}
    features = {
        "image": PICTURE,
        "collection": TEXT,
        "quality_assessment": dict.fromkeys(scores, INTEGER),
        "description": {
            "item": TEXT,
            "description_0": TEXT,
            "description_1": TEXT,
            "category": TEXT,
            "description_valid": datasets.Value("bool"),
        },
    }
    return SetSettings(layout="subjects200k", path=parquet(folder, [row, low, wrong, unscored], features))


def uno_1m(folder: Path) -> SetSettings:
    (folder / "images/split1").mkdir(parents=True)
    picture(11).save(folder / "images/split1/a.png")
    picture(12, 24, 40).save(folder / "images/split1/b.png")
    captions = {
        "img_path1": "A hat on a table.",
        "img_path2": "A hat on a dog.",
        "judgment": "same",
        "subject": ["hat"],
    }
    row = {"img_path1": "split1/a.png", "img_path2": "split1/b.png", "caption": captions}

    def scored(score: float) -> dict[str, object]:
        return {**row, "vlm_filter_cot": {"score_part": {"shape": score}, "score_final": score}}

    write_json(folder / "labels/split1.json", [scored(4.0), scored(3.4), scored(131184.67)])
    return SetSettings(layout="uno_1m", path=f"json:{folder}/labels/*.json", images=f"{folder}/images")


PUBLISHED: dict[str, Callable[[Path], SetSettings]] = {
    **WRITERS,
    **EDITS,
    **{
        writer.__name__: writer
        for writer in (
            *(refcoco, multigen, multigen_depth, captioned_ade20k, captioned_cocostuff),
            *(subjects200k, uno_1m),
        )
    },
}
"""By layout."""
