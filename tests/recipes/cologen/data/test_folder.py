"""A folder of pictures: what is in it comes back, and every fault is named by file and line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from recipes.cologen.data.folder import PictureFolder
from recipes.cologen.data.record import MissingMetadataError
from recipes.cologen.data.views import VIEWS
from recipes.cologen.errors import BrokenPictureError, FolderDataError

WIDTH, HEIGHT = 24, 16


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def gray(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def write_lines(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two described pictures, the first with everything a view may ask for."""
    picture(tmp_path / "cat.png", seed=1)
    picture(tmp_path / "black.png", seed=2)
    mask = np.zeros((HEIGHT, WIDTH))
    mask[4:10, 5:12] = 255
    gray(tmp_path / "mask.png", mask)
    gray(tmp_path / "depth.png", np.tile(np.arange(WIDTH), (HEIGHT, 1)))
    gray(tmp_path / "classes.png", np.tile(np.arange(HEIGHT)[:, None] // 8, (1, WIDTH)))
    cat = {"label": "cat", "bbox": [5, 4, 12, 10], "mask": "mask.png"}
    write_lines(
        tmp_path,
        {
            "file_name": "cat.png",
            "text": "a cat on a sofa",
            "objects": [cat, {"label": "sofa", "category": "furniture", "bbox": [0, 8, 24, 16]}],
            "depth": "depth.png",
            "segmentation": "classes.png",
            "pairs": [
                {"task": "editing", "image": "black.png", "prompt": "make the cat black"},
                {
                    "task": "customization",
                    "image": "black.png",
                    "prompt": "the cat at night",
                    "kind": "scene",
                },
            ],
        },
        {"file_name": "black.png", "text": "schwarz, noir, 黒"},
    )
    return tmp_path


def test_a_record_holds_what_the_metadata_says(folder: Path) -> None:
    record = PictureFolder(folder).record(0)
    assert np.array_equal(record.image, pixels_of(folder / "cat.png"))
    assert record.image.dtype == np.uint8 and record.caption == "a cat on a sofa"
    cat, sofa = record.objects
    assert (cat.label, cat.category, cat.box) == ("cat", "cat", (5, 4, 12, 10))
    assert cat.mask is not None and cat.mask.dtype == np.bool_ and cat.mask.sum() == 6 * 7
    assert (sofa.category, sofa.mask, sofa.box) == ("furniture", None, (0, 8, 24, 16))
    assert record.depth is not None and record.depth.dtype == np.float32
    assert (record.depth.min(), record.depth.max()) == (0.0, 1.0) and (np.diff(record.depth) > 0).all()
    assert record.segmentation is not None and set(np.unique(record.segmentation)) == {0, 1}
    assert [pair.task for pair in record.pairs] == ["editing", "customization"]
    assert [pair.kind for pair in record.pairs] == ["given", "scene"]
    assert record.scene is None


@pytest.mark.parametrize("task", VIEWS)
def test_every_view_reads_a_fully_described_picture(folder: Path, task: str) -> None:
    record = PictureFolder(folder, size=(32, 32)).record(0)
    made = 0
    for seed in range(12):
        try:
            example = VIEWS[task](record, seed)
        except MissingMetadataError as error:
            assert "sofa" in str(error)  # has a box but no mask, and is drawn now and then
            continue
        made += 1
        assert example.source.shape == example.target.shape == (32, 32, 3)
        assert example.source.dtype == example.target.dtype == np.uint8
    assert made >= 3


@pytest.mark.parametrize("task", ["inpainting", "grounding", "customization", "editing"])
def test_a_view_says_what_a_bare_picture_lacks(folder: Path, task: str) -> None:
    with pytest.raises(MissingMetadataError, match=r"black\.png"):
        VIEWS[task](PictureFolder(folder).record(1), 0)


def test_deep_pictures_keep_their_grays(tmp_path: Path) -> None:
    levels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
    Image.fromarray((levels * 257).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((levels / 255).astype(np.float32)).save(tmp_path / "float.tiff")
    pair = {"task": "editing", "image": "float.tiff", "prompt": "keep it"}
    write_lines(tmp_path, {"file_name": "deep.png", "text": "gray", "depth": "float.tiff", "pairs": [pair]})
    record = PictureFolder(tmp_path).record(0)
    for image in (record.image, record.pairs[0].image):
        assert np.array_equal(image, levels[..., None].repeat(3, axis=-1))
    assert record.depth is not None and np.allclose(record.depth, levels / 255)


def test_the_index_counts_on_past_the_end(folder: Path) -> None:
    pictures = PictureFolder(folder)
    assert len(pictures) == 2
    assert [pictures.record(index).id for index in range(4)] == [pictures.record(i % 2).id for i in range(4)]
    stream = pictures.records(start=1)
    assert [next(stream).id for _ in range(3)] == [pictures.record(index).id for index in (1, 2, 3)]
    with pytest.raises(ValueError, match="starts at 0, got -1"):
        pictures.record(-1)


def test_the_same_index_gives_the_same_record(folder: Path) -> None:
    first, second = (PictureFolder(folder, size=(8, 8)).record(0) for _ in range(2))
    assert np.array_equal(first.image, second.image) and first.id == second.id
    assert [item.box for item in first.objects] == [item.box for item in second.objects]


@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    mask=arrays(np.bool_, (HEIGHT, WIDTH)).filter(lambda values: values.any()),
)
def test_everything_keeps_the_asked_size_together(
    tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int], mask: np.ndarray
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    picture(folder / "a.png")
    gray(folder / "mask.png", mask * 255)
    line = {"file_name": "a.png", "text": "a", "depth": "mask.png", "segmentation": "mask.png"}
    pair = {"task": "editing", "image": "a.png", "prompt": "keep it"}
    write_lines(folder, {**line, "objects": [{"label": "it", "mask": "mask.png"}], "pairs": [pair]})
    record = PictureFolder(folder, size).record(0)
    assert record.image.shape == (*size, 3)
    assert record.depth is not None and record.depth.shape == size
    assert 0.0 <= record.depth.min() <= record.depth.max() <= 1.0
    assert record.segmentation is not None and record.segmentation.shape == size
    assert set(np.unique(record.segmentation)) <= {0, 255}
    assert record.pairs[0].image.shape == (*size, 3)
    for item in record.objects:
        assert item.mask is not None and item.mask.shape == size and item.mask.any()
        x0, y0, x1, y1 = item.box
        assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
        outside = item.mask.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()


def test_the_middle_is_cut_and_boxes_follow(tmp_path: Path) -> None:
    picture(tmp_path / "wide.png", width=40, height=20)
    boxes = {"left": [0, 0, 10, 20], "middle": [10, 0, 30, 20], "half": [20, 5, 40, 10]}
    objects = [{"label": label, "bbox": box} for label, box in boxes.items()]
    write_lines(tmp_path, {"file_name": "wide.png", "text": "wide", "objects": objects})
    record = PictureFolder(tmp_path, size=(10, 10)).record(0)
    assert {item.label: item.box for item in record.objects} == {
        "middle": (0, 0, 10, 10),
        "half": (5, 2, 10, 5),
    }


def test_a_picture_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (30, 20), "red").save(tmp_path / "upright.jpg", exif=exif)
    gray(tmp_path / "mask.png", np.ones((30, 20)))
    objects = [{"label": "all", "mask": "mask.png"}]
    write_lines(tmp_path, {"file_name": "upright.jpg", "text": "red", "objects": objects})
    record = PictureFolder(tmp_path).record(0)
    assert record.image.shape == (30, 20, 3) and record.objects[0].box == (0, 0, 20, 30)


GOOD = {"file_name": "black.png", "text": "black"}
FAULTS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "not JSON": ("{'file_name': 'black.png'}", "not a JSON object"),
    "not an object": ("[1, 2]", "expected an object"),
    "no caption": ({"file_name": "black.png"}, "text: missing"),
    "an empty caption": ({**GOOD, "text": ""}, "text"),
    "an unknown key": ({**GOOD, "caption": "black"}, "caption: unknown setting"),
    "no such file": ({**GOOD, "file_name": "gone.png"}, r"there is no file gone\.png"),
    "a file outside": ({**GOOD, "file_name": "../x.png"}, "outside the folder"),
    "an absolute path": ({**GOOD, "file_name": "/etc/hostname"}, "outside the folder"),
    "not a picture": ({**GOOD, "file_name": "metadata.jsonl"}, "not a picture"),
    "a mask of another size": (
        {**GOOD, "objects": [{"label": "it", "mask": "small.png"}]},
        r"small\.png is 4x3 pixels, its picture black\.png 24x16",
    ),
    "depth of another size": ({**GOOD, "depth": "small.png"}, r"small\.png is 4x3"),
    "segmentation in colour": ({**GOOD, "segmentation": "cat.png"}, "RGB picture, not one class number"),
    "neither box nor mask": ({**GOOD, "objects": [{"label": "it"}]}, "neither bbox nor mask"),
    "a box outside": ({**GOOD, "objects": [{"label": "it", "bbox": [20, 2, 10, 5]}]}, "COCO"),
    "a box of three": ({**GOOD, "objects": [{"label": "it", "bbox": [1, 2, 3]}]}, r"objects\.0\.bbox"),
    "an unknown pair": ({**GOOD, "pairs": [{"task": "control", "image": "cat.png", "prompt": "x"}]}, "task"),
    "a pair's missing picture": (
        {**GOOD, "pairs": [{"task": "editing", "image": "gone.png", "prompt": "x"}]},
        r"there is no file gone\.png",
    ),
}


@pytest.mark.parametrize(("line", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_by_file_and_line(folder: Path, line: dict[str, Any] | str, message: str) -> None:
    picture(folder / "small.png", 4, 3)
    write_lines(folder, GOOD, "", line)
    with pytest.raises(FolderDataError, match=rf"metadata\.jsonl, line 3: .*{message}"):
        PictureFolder(folder)


def test_faults_of_several_lines_are_told_at_once(folder: Path) -> None:
    lines = ["{", '{"file_name": "none.png", "text": "x"}', '{"file_name": "scene.png"}'] * 5
    with (folder / "metadata.jsonl").open("a") as metadata:
        metadata.write("".join(f"{line}\n" for line in lines))
    with pytest.raises(FolderDataError) as told:
        PictureFolder(folder)
    text = str(told.value)
    assert text.startswith("15 lines of ") and text.endswith("and 5 more")
    assert all(f"line {number}: " in text for number in range(3, 13))


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.png"
    picture(elsewhere)
    (folder / "link.png").symlink_to(elsewhere)
    write_lines(folder, {"file_name": "link.png", "text": "x"})
    with pytest.raises(FolderDataError, match=r"line 1: .*outside the folder"):
        PictureFolder(folder)


def test_a_line_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "cat.png", "text": "\xff"}\n')
    with pytest.raises(FolderDataError, match=r"line 1: .*UTF-8"):
        PictureFolder(folder)


def test_pixels_that_break_off_are_named_when_they_are_read(folder: Path) -> None:
    picture(folder / "torn.png", 200, 200)
    whole = (folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    write_lines(folder, GOOD, {"file_name": "torn.png", "text": "torn"})
    pictures = PictureFolder(folder)
    pictures.record(0)
    with pytest.raises(BrokenPictureError, match=r"line 2: torn\.png is broken"):
        pictures.record(1)


def test_a_mask_without_a_pixel_is_named(folder: Path) -> None:
    gray(folder / "mask.png", np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(FolderDataError, match=r"line 1: the mask mask\.png is black everywhere"):
        PictureFolder(folder).record(0)


def test_a_folder_without_metadata_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(FolderDataError, match=r"has no metadata\.jsonl.*file_name"):
        PictureFolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n\n")
    with pytest.raises(FolderDataError, match=r"metadata\.jsonl is empty"):
        PictureFolder(tmp_path)
    with pytest.raises(FolderDataError, match="is not a folder"):
        PictureFolder(tmp_path / "gone")
