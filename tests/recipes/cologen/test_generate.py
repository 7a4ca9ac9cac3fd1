"""The command that draws a picture: five tasks, the pool of the task's stage, refusals that write nothing."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cologen import generate as command
from recipes.cologen.data.annotators.opencv import draw_canny
from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.pictures import enlarge
from recipes.cologen.pipeline import CoLoGenPipeline
from recipes.cologen.report.run_reader import RunReader

PROMPTS = {
    "inpainting": "small red circle top left on gray",
    "grounding": "draw a red box around the blue square",
    "control": "canny edge to image small red circle top left on gray",
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


REFUSALS = {
    "an unknown word": (
        ["--prompt", "draw a crimsn box around the blu square"],
        r"'crimsn'.*'blu' \(near: blue",
    ),
    "a capital": (["--prompt", "Draw a red box"], r"'Draw' \(near: draw"),
    "an unfinished stage": (
        ["--task", "editing", "--prompt", "make the red circle blue"],
        "'editing'.*not finished",
    ),
    "no run": (["--checkpoint", "nowhere"], "nowhere is not a training run"),
    "no picture": (["--image", "nowhere.png"], r"there is no picture nowhere\.png"),
    "no folder": (["--output", "nowhere/out.png"], "there is no folder nowhere"),
    "no format": (["--output", "out.txt"], r"out\.txt does not end like a picture"),
    "a mask for grounding": (["--mask", "{image}"], "--mask is for --task inpainting"),
    "a map for grounding": (["--draw-map", "canny"], "--draw-map is for --task control; grounding reads"),
    "a map that nobody draws": (
        ["--task", "control", "--prompt", PROMPTS["control"], "--draw-map", "depth"],
        "depth map needs a network, but data.annotators names none",
    ),
    "an empty mask": (["--task", "inpainting", "--mask", "{black}"], "no white pixel"),
    "not a picture": (["--image", "{text}"], "cannot be read as a picture"),
    "no hole": (["--task", "inpainting", "--image", "{white}"], "there is no hole"),
    "nothing but a hole": (["--task", "inpainting", "--image", "{black}"], "covers the whole picture"),
    "a picture too large": (["--scale", "5000"], "--scale 5000 would make a picture of 80000x80000"),
    "a prompt too long": (["--prompt", "draw a " + "red " * 40], r"\d\d T5 tokens .* but 20 are read"),
}


@pytest.mark.parametrize(("more", "message"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_with_a_reason_and_writes_nothing(
    arguments: list[str],
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {name: tmp_path / f"{name}.png" for name in ("white", "black", "text")}
    Image.new("RGB", (16, 16), "white").save(names["white"])
    Image.new("RGB", (16, 16), "black").save(names["black"])
    names["text"].write_text("I am no picture")
    names["image"] = tmp_path / "in.png"
    before = sorted(tmp_path.iterdir())
    assert main([*arguments, *(part.format(**names) for part in more)]) == 1
    assert re.search(f"error: .*({message})", capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


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
    assert re.search(r"router\s+drifts", capsys.readouterr().out)
