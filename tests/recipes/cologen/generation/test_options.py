"""What the command that draws a picture refuses: with a reason, and without writing anything."""

import re
from pathlib import Path

import pytest
from PIL import Image

from recipes.cologen.data.world import World
from recipes.cologen.generate import main

PROMPTS = {
    "grounding": "draw a red box around the blue square",
    "control": "canny edge to image red circle top left on gray",
}


@pytest.fixture
def arguments(finished_run: Path, tmp_path: Path) -> list[str]:
    """A command that works."""
    Image.fromarray(World(3).record(0).image).save(tmp_path / "in.png")
    files = ["--checkpoint", str(finished_run), "--image", str(tmp_path / "in.png")]
    words = ["--task", "grounding", "--prompt", PROMPTS["grounding"]]
    return [*files, *words, "--output", str(tmp_path / "out.png")]


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
    "a part of a run": (["--checkpoint", "{run}/checkpoints"], "a part of one. Did you mean {run}?"),
    "a file for a run": (["--checkpoint", "{run}/config.yaml"], "it is a file"),
    "a folder for a run": (
        ["--checkpoint", "{folder}"],
        "has no config.yaml. Give the folder that training wrote.$",
    ),
    "no picture": (["--image", "nowhere.png"], r"there is no picture nowhere\.png"),
    "a folder for a picture": (["--image", "{folder}"], "{folder} is a folder, not a picture"),
    "an empty name": (["--image", ""], "the name of the picture is empty"),
    "an address": (
        ["--image", "https://x.org/a.png"],
        " https://x.org/a.png is an address; pictures are not fetched",
    ),
    "no prompt": (["--prompt", " "], "there is no prompt; say what is to be generated"),
    "the picture for its output": (["--output", "{white}", "--image", "{white}"], "would be lost"),
    "a mask for its output": (["--output", "{white}", "--mask", "{white}"], "would be lost"),
    "a folder that takes no file": (["--output", "/proc/x.png"], "nothing can be written into /proc"),
    "a seed below 0": (["--seed", "-3"], "--seed: expected 0 or more, got -3"),
    "another run": (
        ["--of-run", "0123"],
        "--of-run asks for the run 0123, .*the fingerprint of its config.yaml",
    ),
    "guidance": (["--guidance", "3"], "reads no guidance scale; leave guidance out"),
    "a gray mask": (["--task", "inpainting", "--mask", "{gray}"], "covers the whole picture"),
    "too many pixels": (["--image", "{huge}"], r"too many pixels; at most \d+ million are read. Make it sm"),
    "no folder": (["--output", "nowhere/out.png"], "there is no folder nowhere"),
    "no format": (["--output", "out.txt"], r"out\.txt does not end like a picture"),
    "a mask for grounding": (["--mask", "{image}"], "--mask is for --task inpainting"),
    "a map for grounding": (["--draw-map", "canny"], "--draw-map is for --task control; grounding reads"),
    "a map that nobody draws": (
        ["--task", "control", "--prompt", PROMPTS["control"], "--draw-map", "depth"],
        r"depth map needs a network, but data.annotators names none for it\. Give the map",
    ),
    "an empty mask": (["--task", "inpainting", "--mask", "{black}"], "no white pixel"),
    "not a picture": (["--image", "{text}"], "cannot be read as a picture"),
    "no hole": (["--task", "inpainting", "--image", "{white}"], "there is no hole"),
    "nothing but a hole": (["--task", "inpainting", "--image", "{black}"], "covers the whole picture"),
    "a picture too large": (["--scale", "5000"], "--scale 5000 would make a picture of 80000x80000"),
    "a prompt too long": (
        ["--prompt", "draw a " + "red " * 40],
        r"\d\d T5 tokens .* but at most 20 are read: 'draw a red [^']{{40,50}}\.\.\.'\. Shorten it\.$",
    ),
}


@pytest.mark.parametrize(("more", "message"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_with_a_reason_and_writes_nothing(
    arguments: list[str],
    finished_run: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    colours = {"white": "white", "black": "black", "gray": (128, 128, 128)}
    names = {name: tmp_path / f"{name}.png" for name in (*colours, "text", "huge")}
    for name, colour in colours.items():
        Image.new("RGB", (16, 16), colour).save(names[name])
    Image.new("1", (20_000, 9_000)).save(names["huge"])
    names |= {"run": finished_run, "folder": tmp_path}
    names["text"].write_text("I am no picture")
    names["image"] = tmp_path / "in.png"
    before = sorted(tmp_path.iterdir())
    assert main([*arguments, *(part.format(**names) for part in more)]) == 1
    assert re.search(f"error:.*({message.format(**names)})", capsys.readouterr().err, re.MULTILINE)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_with_too_many_steps_or_another_run_is_refused_at_once(
    arguments: list[str], finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("1001", "100000000", "0", "x"):
        with pytest.raises(SystemExit, match="2"):
            main([*arguments, "--steps", steps])
        assert f"expected a whole number from 1 to 1000, got '{steps}'" in capsys.readouterr().err
    assert main([*arguments, "--of-run", "0123"]) == 1
    said = re.search(r"--of-run ([0-9a-f]{16}) to use", capsys.readouterr().err)
    assert said is not None and main([*arguments, "--of-run", said[1]]) == 0
