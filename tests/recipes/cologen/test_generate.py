"""The command that draws a picture: five tasks, the pool of the task's stage, what is said about it."""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from recipes.cologen import generate as command
from recipes.cologen.config import load_config
from recipes.cologen.data.annotators.opencv import draw_canny
from recipes.cologen.data.world import World
from recipes.cologen.generate import _source, main
from recipes.cologen.generate_options import options
from recipes.cologen.pictures import Fitted, enlarge
from recipes.cologen.pipeline import CoLoGenPipeline
from recipes.cologen.pipeline.pixels import own_size
from recipes.cologen.report.run_reader import RunReader
from recipes.cologen.sample_picture import size_to_draw, source_of
from recipes.cologen.training.growth import load_base

PROMPTS = {
    "inpainting": "small red circle top left on gray",
    "grounding": "draw a red box around the blue square",
    "control": "canny edge to image red circle top left on gray",
}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of the world with a black hole."""
    image = World(3).record(0).image.copy()
    image[2:6, 3:9] = 0
    path = tmp_path / "in.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def arguments(finished_run: Path, picture: Path, tmp_path: Path) -> list[str]:
    """A command that works."""
    files = [
        "--checkpoint",
        str(finished_run),
        "--image",
        str(picture),
        "--output",
        str(tmp_path / "out.png"),
    ]
    return [*files, "--task", "grounding", "--prompt", PROMPTS["grounding"]]


def draw(arguments: list[str], *more: str) -> np.ndarray:
    """Run the command with further (later, so winning) arguments and read what it wrote."""
    assert main([*arguments, *more]) == 0
    return pixels_of(Path(arguments[arguments.index("--output") + 1]))


@pytest.mark.parametrize("task", PROMPTS)
def test_every_trained_task_draws_a_picture(arguments: list[str], task: str) -> None:
    drawn = draw(arguments, "--task", task, "--prompt", PROMPTS[task])
    assert drawn.shape == (256, 256, 3) and np.array_equal(enlarge(drawn[::16, ::16], 16), drawn)


@pytest.mark.parametrize("task", ["customization", "editing"])
def test_a_task_draws_with_any_finished_stage_on_request(arguments: list[str], task: str) -> None:
    prompt = (
        "the same object at the top left on navy" if task == "customization" else "make the red circle blue"
    )
    assert draw(arguments, "--task", task, "--prompt", prompt, "--as-of", "control").any()


def test_the_size_of_the_output_is_native_or_scaled(arguments: list[str]) -> None:
    native = draw(arguments, "--native")
    assert native.shape == (16, 16, 3)
    assert np.array_equal(draw(arguments, "--scale", "3"), enlarge(native, 3))


def test_the_same_seed_draws_the_same(arguments: list[str]) -> None:
    first, again, other = (draw(arguments, "--seed", seed) for seed in ("1", "1", "2"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_tasks_own_stage_draws_unless_told_otherwise(arguments: list[str]) -> None:
    own = draw(arguments)
    assert np.array_equal(own, draw(arguments, "--as-of", "grounding"))
    others = [draw(arguments, "--as-of", "inpainting"), draw(arguments, "--as-of", "full-pool")]
    others.append(draw(arguments, "--experts-off"))
    for other in others:
        assert not np.array_equal(own, other)


def test_an_enlarged_picture_draws_what_the_small_one_does(
    arguments: list[str], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = draw(arguments)
    large = tmp_path / "large.png"
    Image.fromarray(enlarge(pixels_of(picture), 16)).save(large)
    assert np.array_equal(draw(arguments, "--image", str(large)), small)
    assert "note" not in capsys.readouterr().err


def test_another_picture_is_resized_with_a_word_about_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(photo)
    assert draw(arguments, "--image", str(photo)).shape == (256, 256, 3)
    assert re.search(r"note: .*photo\.jpg is 50x30 pixels; .* 16x16", capsys.readouterr().err)


def test_a_mask_says_where_to_paint(arguments: list[str], picture: Path, tmp_path: Path) -> None:
    image = World(3).record(0).image
    whole, mask = tmp_path / "whole.png", tmp_path / "mask.png"
    Image.fromarray(image).save(whole)
    hole = (pixels_of(picture) == 0).all(axis=-1)
    Image.fromarray(enlarge((hole[..., None].repeat(3, -1) * 255).astype(np.uint8), 8)).save(mask)
    inpaint = ["--task", "inpainting", "--prompt", PROMPTS["inpainting"]]
    by_mask = draw(arguments, *inpaint, "--image", str(whole), "--mask", str(mask))
    assert np.array_equal(by_mask, draw(arguments, *inpaint, "--image", str(picture)))


def test_a_phrase_is_enough_for_grounding(arguments: list[str]) -> None:
    by_order = draw(arguments)  # "draw a red box around the blue square"
    assert np.array_equal(by_order, draw(arguments, "--prompt", "blue square"))


def test_a_control_prompt_without_its_kind_gets_a_hint(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(arguments, "--task", "control", "--prompt", "small red circle top left on gray")
    assert "canny edge to image" in capsys.readouterr().err


def test_the_map_of_a_photograph_is_drawn_first_on_request(arguments: list[str], tmp_path: Path) -> None:
    image = World(3).record(0).image
    maps = {"photo": image, "map": draw_canny(image)}
    for name, pixels in maps.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    control = ["--task", "control", "--prompt", PROMPTS["control"], "--image"]
    by_map = draw(arguments, *control, str(tmp_path / "map.png"))
    plain = draw(arguments, *control, str(tmp_path / "photo.png"))
    drawn = draw(arguments, *control, str(tmp_path / "photo.png"), "--draw-map", "canny")
    assert np.array_equal(drawn, by_map) and not np.array_equal(plain, by_map)


def test_what_is_transparent_is_seen_white_with_a_word_about_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, shown = World(3).record(0).image, tmp_path / "shown.png"
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:8] = 0
    clear, white = tmp_path / "clear.png", image.copy()
    white[:8] = 255
    Image.fromarray(np.concatenate([image, alpha], -1)).save(clear)
    Image.fromarray(white).save(shown)
    expected = draw(arguments, "--image", str(shown))
    assert "note" not in capsys.readouterr().err
    assert np.array_equal(draw(arguments, "--image", str(clear)), expected)
    assert re.search(r"note: .*clear\.png has transparent parts; .* white", capsys.readouterr().err)


def test_a_prompt_of_another_kind_than_the_drawn_map_gets_a_hint(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    control = ["--task", "control", "--draw-map", "canny", "--prompt"]
    draw(arguments, *control, "depth map to image red circle top left on gray")
    assert 'the map is canny ("canny edge to image"), but the prompt begins with "depth map' in (
        capsys.readouterr().err
    )
    draw(arguments, *control, PROMPTS["control"])
    assert "note" not in capsys.readouterr().err


def test_the_last_line_gives_the_size_that_was_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for more, said in (([], "256x256 pixels (16x16 enlarged 16 times)"), (["--native"], "16x16 pixels")):
        draw(arguments, *more)
        assert capsys.readouterr().err.endswith(f"out.png, {said}\n")


def test_a_long_narrow_picture_is_enlarged_as_far_as_can_be_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(arguments, "--size", "1600x16", "--steps", "1")
    assert capsys.readouterr().err.endswith("out.png, 8000x80 pixels (1600x16 enlarged 5 times)\n")


def test_a_disk_that_cannot_be_written_is_said_in_a_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_picture", full)
    assert main(arguments) == 1
    assert re.search(r"^error: .*No space left on device$", capsys.readouterr().err, re.MULTILINE)


def test_a_task_is_drawn_although_a_later_stage_is_damaged_and_a_damaged_one_says_what_to_do(
    arguments: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    first, newest = RunReader(run).finished_stages()[0], RunReader(run).finished_stages()[-1]
    assert first != newest
    weights = RunReader(run).pool(newest) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    words = ["--checkpoint", str(run), "--prompt", "small red circle top left on gray"]
    assert main([*arguments, *words, "--task", first]) == 0
    assert main([*arguments, *words, "--as-of", newest]) == 1
    assert f"--restart {newest}" in capsys.readouterr().err


def test_ctrl_c_stops_it_with_a_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CoLoGenPipeline, "__call__", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "stopped; nothing was written\n"


def test_the_help_says_why_the_tasks_stage_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert re.search(r"router\s+drifts", said)
    for form in ("--settings FILE --output FILE", "--checkpoint RUN --batch JOBS --output FOLDER"):
        assert re.search(rf"^ +python -m recipes.cologen.generate {form}", said, re.MULTILINE)


def test_a_config_may_be_named_and_must_be_the_runs(arguments, finished_run, tmp_path, capsys):
    draw(arguments, "--config", str(finished_run / "config.yaml"))
    output = tmp_path / "other.png"
    assert main([*arguments, "--config", "tiny", "--output", str(output)]) == 1
    assert "was not trained by --config tiny" in capsys.readouterr().err and not output.exists()
    assert main([*arguments, "--config", "tini", "--output", str(output)]) == 1
    assert "there is no config 'tini'" in capsys.readouterr().err


def test_a_size_is_drawn_as_asked_and_the_source_keeps_its_proportions(
    arguments: list[str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8], wide[:, 8:24], wide[:, 24:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    given = [*arguments, "--image", str(tmp_path / "wide.png"), "--native"]
    seen: list[np.ndarray] = []

    def noted(model, settings, wanted, sources, **more):
        seen.append(sources[0])
        return sample(model, settings, wanted, sources, **more)

    sample = command.sample_picture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "sample_picture", noted)
        assert main(given) == 0 and main([*given, "--size", "32x16"]) == 0
        assert main([*given, "--size=16x32"]) == 0
    assert (seen[0] == (0, 250, 0)).all()  # the run's own 16x16: the middle, not all of it squeezed
    assert np.array_equal(seen[1], wide) and seen[2].shape == (32, 16, 3)
    assert pixels_of(tmp_path / "out.png").shape == (32, 16, 3)
    assert "wide.png is 32x16 pixels; its middle, 16x16, was resized to the model's 16x16." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("size", "message"),
    {
        "64": "--size: expected WIDTHxHEIGHT of at most 8192 pixels a side, such as 640x480, got '64'",
        "0x16": "--size: expected WIDTHxHEIGHT",
        "16x9000": "--size: expected WIDTHxHEIGHT",
        "16x30": r"multiples of 4 for this base, got 16x30. Try --size 16x32",
    }.items(),
)
def test_a_size_that_cannot_be_is_refused(
    arguments: list[str], size: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--size", size]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


def test_a_map_of_classes_keeps_its_colours_and_a_photo_to_make_one_of_does_not(
    finished_run: Path,
) -> None:
    folder = load_config(finished_run / "config.yaml", ["data.source=folder:x"])
    model = load_base(folder, torch.device("cpu"))
    levels = np.random.default_rng(0).integers(0, 4, (78, 104, 1), dtype=np.uint8)
    image = (levels * 80).repeat(3, axis=-1)

    def colours(prompt: str, **more: object) -> int:
        seen = source_of(model, folder, "control", prompt, image, size="80x64", **more)
        return len(np.unique(seen.image))

    assert colours("segmentation map to image a cat") == colours("a cat", kind="segmentation") == 4
    assert colours("depth map to image a cat") > 4
    photo = {"kind": "segmentation", "is_photo": True}
    assert colours("segmentation map to image a cat", **photo) > 4
    files = ["--checkpoint", "x", "--image", "x", "--output", "x"]
    asked = ["--task", "control", "--draw-map", "segmentation", "--prompt", "segmentation map to image a cat"]
    by_command = _source(
        options().parse_args([*files, *asked]),
        Fitted(image, None),
        None,
        partial(source_of, model, folder, size="80x64"),
        Console(quiet=True),
    )
    assert len(np.unique(by_command)) > 4


def test_a_picture_without_a_size_is_drawn_at_a_megapixel_at_most(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = load_config(finished_run / "config.yaml", ["data.source=folder:x"])
    model = load_base(folder, torch.device("cpu"))
    image = np.zeros((3000, 4000, 3), np.uint8)
    source = source_of(model, folder, "editing", "make the red circle blue", image)
    assert source.image.shape[:2] == own_size(3000, 4000, 4) == (884, 1180)
    assert any("at most 1048576 pixels are drawn" in notice for notice in source.notices)
    assert size_to_draw(folder, model, image, "64x48") == (48, 64)
    bucketed = load_config(
        finished_run / "config.yaml", ["data.source=folder:x", "data.buckets.sizes=[[32,32],[32,64]]"]
    )
    assert size_to_draw(bucketed, model, image[:, :3000]) == (32, 32)  # as training gives it
