"""Writes a few rows of each published data set, with exactly its columns; the pictures are not square."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from recipes.cologen.config.data import SetSettings

WIDTH, HEIGHT = 40, 24
TEXT, INTEGER, NUMBER = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float64")
PICTURE = datasets.Image()


def pixels(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.fromarray(pixels(seed, width, height))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def outline(x0: int, y0: int, x1: int, y1: int) -> list[int]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode("ascii")}


def parquet(folder: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> str:
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return f"parquet:{folder}/train-*.parquet"


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def journeydb(folder: Path) -> SetSettings:
    (folder / "imgs/000").mkdir(parents=True)
    picture(1).save(folder / "imgs/000/a.jpg", quality=100)
    picture(2).save(folder / "imgs/000/b.jpg")
    rows = [
        {
            "img_path": "./000/a.jpg",
            "prompt": "cat --v 4",
            "Task1": {},
            "Task2": {"Caption": "A cat."},
            "Task3": {},
        },
        {"img_path": "./000/b.jpg", "prompt": "a dog --v 4", "Task1": {}, "Task2": {}, "Task3": {}},
    ]
    write_lines(folder / "train_anno_realease_repath.jsonl", *rows)
    found = {"label": "cat", "bbox": [4, 6, 10, 12], "segmentation": run_lengths(rectangle(4, 6, 14, 18))}
    write_lines(folder / "objects.jsonl", {"file_name": "./000/a.jpg", "objects": [found]})
    return SetSettings(
        layout="journeydb",
        path=f"json:{folder}/train_anno_realease_repath.jsonl",
        images=f"{folder}/imgs",
        additions=f"{folder}/objects.jsonl",
    )


def ade20k(folder: Path) -> SetSettings:
    parts = {"is_part_of": None, "part_level": 0, "has_parts": []}
    hidden = {
        "id": 2,
        "name": "wheel",
        "raw_name": "wheel",
        "polygon": {"x": [1, 2], "y": [1, 2], "click_date": []},
    }
    sofa = {"x": [4, 13, 13, 4], "y": [6, 6, 17, 17], "click_date": []}
    row = {
        "image": picture(3),
        "segmentations": [picture(4)],
        "instances": [],
        "filename": "ADE_train_00000001.jpg",
        "folder": "training",
        "source": {"folder": "", "filename": "", "origin": ""},
        "scene": ["room"],
        "objects": [
            {"id": 1, "name": "sofa, couch, lounge", "raw_name": "sofa", "polygon": sofa, "parts": parts},
            {**hidden, "parts": {**parts, "part_level": 1}},
        ],
    }
    item = {
        "id": datasets.Value("uint16"),
        "name": TEXT,
        "raw_name": TEXT,
        "parts": {
            "is_part_of": datasets.Value("uint16"),
            "part_level": datasets.Value("uint8"),
            "has_parts": datasets.List(datasets.Value("uint16")),
        },
        "polygon": {
            "x": datasets.List(datasets.Value("uint16")),
            "y": datasets.List(datasets.Value("uint16")),
            "click_date": datasets.List(TEXT),
        },
    }
    features = {
        "image": PICTURE,
        "segmentations": datasets.List(PICTURE),
        "instances": datasets.List(PICTURE),
        "filename": TEXT,
        "folder": TEXT,
        "source": {"folder": TEXT, "filename": TEXT, "origin": TEXT},
        "scene": datasets.List(TEXT),
        "objects": datasets.List(item),
    }
    captions = write_lines(
        folder / "captions.jsonl", {"file_name": row["filename"], "text": "a sofa in a room"}
    )
    return SetSettings(layout="ade20k", path=parquet(folder, [row], features), additions=str(captions))


def coco_stuff(folder: Path) -> SetSettings:
    (folder / "train2017").mkdir()
    images = [
        {"id": number, "file_name": f"{number:012}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1}
        for number in (9, 10)
    ]
    picture(5).save(folder / "train2017/000000000009.jpg")
    cat = {"id": 1, "image_id": 9, "category_id": 17, "bbox": [4, 6, 10, 12], "area": 120, "iscrowd": 0}
    crowd = {**cat, "id": 2, "iscrowd": 1, "segmentation": run_lengths(rectangle(0, 0, 40, 24))}
    sky = {**cat, "id": 3, "category_id": 157, "bbox": [0, 0, 40, 5]}
    categories = {
        "instances": [{"id": 17, "name": "cat", "supercategory": "animal"}],
        "stuff": [{"id": 157, "name": "sky-other", "supercategory": "sky"}],
        "captions": [],
    }
    annotations = {
        "instances": [{**cat, "segmentation": [outline(4, 6, 14, 18)]}, crowd],
        "stuff": [{**sky, "segmentation": run_lengths(rectangle(0, 0, 40, 5))}],
        "captions": [{"id": 1, "image_id": 9, "caption": "A cat under the sky. "}],
    }
    for name, found in annotations.items():
        content = {"info": {}, "licenses": [], "images": images, "annotations": found}
        write_json(folder / f"{name}_train2017.json", {**content, "categories": categories[name]})
    files = ",".join(f"{folder}/{name}_train2017.json" for name in annotations)
    return SetSettings(layout="coco_stuff", path=f"json:{files}", images=f"{folder}/train2017")


def lvis(folder: Path) -> SetSettings:
    (folder / "train2017").mkdir()
    picture(6).save(folder / "train2017/000000000009.jpg")
    image = {
        "id": 9,
        "width": WIDTH,
        "height": HEIGHT,
        "license": 1,
        "date_captured": "",
        "flickr_url": "",
        "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
    }
    annotation = {"id": 1, "image_id": 9, "category_id": 3, "bbox": [4.5, 6, 9.5, 12], "area": 100.0}
    category = {
        "id": 3,
        "name": "tennis_racket",
        "synset": "racket.n.04",
        "synonyms": [],
        "def": "",
        "frequency": "f",
        "image_count": 1,
        "instance_count": 1,
    }
    content = {"info": {}, "licenses": [], "images": [image], "categories": [category]}
    annotations = [{**annotation, "segmentation": [outline(4, 6, 14, 18)]}]
    write_json(folder / "lvis_v1_train.json", {**content, "annotations": annotations})
    return SetSettings(layout="lvis", path=f"json:{folder}/lvis_v1_train.json", images=str(folder))


WRITERS: dict[str, Callable[[Path], SetSettings]] = {
    "journeydb": journeydb,
    "ade20k": ade20k,
    "coco_stuff": coco_stuff,
    "lvis": lvis,
}
