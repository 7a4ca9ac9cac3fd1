"""A picture's settings as a file: what generate draws from it, what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from recipes.cologen.data.world import World
from recipes.cologen.generate import main
from recipes.cologen.generation.settings import PictureSettings, as_png, read_settings, settings_file
from recipes.cologen.runs.reader import RunReader

PICTURE = World(3).record(0).image
HOLE = np.zeros_like(PICTURE)
HOLE[2:6, 3:9] = 255


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).copy()


@pytest.fixture
def written(finished_run: Path, tmp_path: Path) -> Path:
    """The settings of an inpainted picture."""
    settings = PictureSettings(
        task="inpainting", prompt="small red circle top left on gray", pool="full-pool", seed=7, steps=3
    )
    path = tmp_path / "settings.json"
    run = RunReader(finished_run).settings.fingerprint()
    path.write_text(settings_file(settings, finished_run, run, PICTURE, HOLE))
    return path


def drawn(tmp_path: Path, *arguments: str) -> np.ndarray:
    out = tmp_path / "out.png"
    assert main([*arguments, "--output", str(out)]) == 0
    return pixels(out)


def test_a_file_draws_what_its_options_draw(written: Path, finished_run: Path, tmp_path: Path) -> None:
    for name, image in (("image", PICTURE), ("mask", HOLE)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    plain = [
        *("--checkpoint", str(finished_run), "--task", "inpainting", "--seed", "7", "--steps", "3"),
        *("--prompt", "small red circle top left on gray", "--as-of", "full-pool"),
        *("--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")),
    ]
    assert np.array_equal(drawn(tmp_path, "--settings", str(written)), drawn(tmp_path, *plain))


def test_what_is_given_beside_the_file_wins(written: Path, tmp_path: Path) -> None:
    as_written = drawn(tmp_path, "--settings", str(written))
    assert not np.array_equal(drawn(tmp_path, "--settings", str(written), "--seed", "8"), as_written)
    assert np.array_equal(drawn(tmp_path, "--settings", str(written), "--seed", "7"), as_written)


def test_the_file_may_be_given_with_a_sign_and_another_pool_wins(written: Path, tmp_path: Path) -> None:
    held = json.loads(written.read_text())
    held["settings"]["pool"] = "no-experts"
    written.write_text(json.dumps(held))
    alone = drawn(tmp_path, f"--settings={written}")
    other = drawn(tmp_path, f"--settings={written}", "--as-of", "control")
    assert not np.array_equal(alone, other)


def test_notes_name_the_file_and_not_where_its_pictures_were_put(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads(written.read_text())
    held["image"] = as_png(np.full((30, 50, 3), 9, np.uint8))
    written.write_text(json.dumps(held))
    drawn(tmp_path, "--settings", str(written))
    assert f"note: the image in {written} is 50x30 pixels" in capsys.readouterr().err
    Image.fromarray(PICTURE[1:]).save(tmp_path / "mine.png")
    drawn(tmp_path, "--settings", str(written), "--image", str(tmp_path / "mine.png"))
    assert f"note: {tmp_path / 'mine.png'} is 16x15 pixels" in capsys.readouterr().err


@given(
    prompt=st.text(max_size=40),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 500),
    guidance=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    image=arrays(np.uint8, (3, 5, 3)),
)
def test_settings_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str,
    seed: int,
    steps: int,
    guidance: float | None,
    image: np.ndarray,
) -> None:
    settings = PictureSettings(
        task="editing", prompt=prompt, pool="editing", seed=seed, steps=steps, guidance=guidance
    )
    path = tmp_path_factory.mktemp("settings") / "settings.json"
    path.write_text(settings_file(settings, Path("runs/x"), "f", image, None), encoding="utf-8")
    held = read_settings(path)
    assert (held.settings, held.pictures) == (settings, {"image": as_png(image)})


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return edit


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "no JSON": (lambda path: path.write_text("{"), "not JSON"),
    "another kind": (changed(lambda held: held.update(kind="x")), "kind: "),
    "an unknown key": (
        changed(lambda held: held["settings"].update(guidence=3)),
        "settings.guidence: unknown setting. Did you mean settings.guidance?",
    ),
    "too many steps": (
        changed(lambda held: held["settings"].update(steps=10**8)),
        "settings.steps: expected 1000 or less, got 100000000",
    ),
    "an unknown pool": (changed(lambda held: held["settings"].update(pool="--help")), "the pool '--help'"),
    "a damaged picture": (changed(lambda held: held.update(image="@@")), "not base64"),
    "no picture": (
        changed(lambda held: held.update(image="aGVsbG8=")),
        r"the image in [^ ]*settings\.json cannot be read as a picture",
    ),
    "another run": (
        changed(lambda held: held.update(run="0123")),
        r"settings\.json is of a picture of the run 0123.*another picture would come out",
    ),
    "guidance": (changed(lambda held: held["settings"].update(guidance=3.0)), "reads no guidance"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.values(), ids=REFUSALS)
def test_it_refuses_with_a_reason_and_writes_nothing(
    written: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(written)
    assert main(["--settings", str(written), "--output", str(tmp_path / "out.png")]) == 1
    assert re.search(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "out.png").exists()
