"""The drawing session: what `generate` draws, from every pool, whoever asks at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.cologen.data.annotators.opencv import canny_map
from recipes.cologen.data.picture_files import enlarge
from recipes.cologen.data.world import World
from recipes.cologen.errors import CologenError, PictureError, RunFolderError
from recipes.cologen.generate import main
from recipes.cologen.generation.sample import sample_picture
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.generation.settings import FULL_POOL, NO_EXPERTS, PictureSettings
from recipes.cologen.runs.loading import load_base
from recipes.cologen.runs.reader import RunReader
from tests.recipes.cologen.conftest import write_run

PICTURE = World(3).record(0).image
WORDS = "draw a red box around the blue square"


def wanted(pool: str = "grounding", **more: object) -> PictureSettings:
    return PictureSettings.model_validate(
        {"task": "grounding", "prompt": WORDS, "pool": pool, "steps": 2, **more}
    )


def by_command(run: Path, folder: Path, settings: PictureSettings) -> np.ndarray:
    source, out = folder / "source.png", folder / "out.png"
    Image.fromarray(PICTURE).save(source)
    files = ["--checkpoint", str(run), "--image", str(source), "--output", str(out), "--native"]
    assert main([*files, *settings.arguments()]) == 0
    with Image.open(out) as opened:
        return np.asarray(opened.convert("RGB")).copy()


@pytest.fixture(scope="module")
def session(finished_run: Path) -> GenerationSession:
    return GenerationSession(RunReader(finished_run))


@pytest.mark.parametrize("pool", ["grounding", "inpainting", FULL_POOL, NO_EXPERTS])
def test_it_draws_what_the_command_draws_bit_for_bit(
    session: GenerationSession, finished_run: Path, tmp_path: Path, pool: str
) -> None:
    settings = wanted(pool, seed=5)
    drawn = session.generate(settings, PICTURE)
    assert np.array_equal(drawn.image, by_command(finished_run, tmp_path, settings))
    assert (drawn.routing is None) == (pool == NO_EXPERTS)


def test_pools_whose_old_routers_went_on_training_are_those_of_their_own_folders(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "base")
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "train_veteran_gates: false" in text
    config.write_text(text.replace("train_veteran_gates: false", "train_veteran_gates: true"))
    session = GenerationSession(RunReader(run))
    for pool in ("inpainting", FULL_POOL, "grounding"):
        settings = wanted(pool)
        assert np.array_equal(
            session.generate(settings, PICTURE).image, by_command(run, tmp_path, settings)
        ), pool


def test_who_asks_at_the_same_time_gets_the_same_as_alone(session: GenerationSession) -> None:
    asked = [wanted(pool, seed=seed) for seed in range(4) for pool in ("inpainting", FULL_POOL, NO_EXPERTS)]
    alone = [session.generate(one, PICTURE) for one in asked]
    with ThreadPoolExecutor(4) as users:
        together = list(users.map(lambda one: session.generate(one, PICTURE), asked))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.image, other.image)
        if one.routing is not None and other.routing is not None:
            assert len(one.routing.all()) == len(other.routing.all())


def test_the_pool_of_the_tasks_own_stage_comes_first_if_it_is_there(session: GenerationSession) -> None:
    assert session.pools("control") == ("control", FULL_POOL, NO_EXPERTS)
    assert session.pools("editing") == (FULL_POOL, NO_EXPERTS)


def test_a_map_is_made_from_a_photo_as_training_makes_it(session: GenerationSession) -> None:
    assert np.array_equal(session.made_map(enlarge(PICTURE, 4), "canny"), canny_map(PICTURE))
    for kind in session.made_maps:
        assert session.made_map(PICTURE, kind).shape == PICTURE.shape
    with pytest.raises(PictureError, match=r"depth.*Give the map itself"):
        session.made_map(PICTURE, "depth")


@pytest.mark.parametrize(
    ("settings", "mask", "message"),
    [
        (wanted("editing"), None, "'editing'.*not finished"),
        (wanted(prompt="draw a crimsn box"), None, "'crimsn'"),
        (wanted(), PICTURE, "a mask is for inpainting"),
        (wanted(task="inpainting", pool="inpainting"), np.zeros_like(PICTURE), "no hole"),
    ],
)
def test_refusals_leave_the_room_as_it_was(
    session: GenerationSession, settings: PictureSettings, mask: np.ndarray | None, message: str
) -> None:
    before = session.generate(wanted(), PICTURE).image
    with pytest.raises(CologenError, match=message):
        session.generate(settings, PICTURE, mask)
    assert np.array_equal(session.generate(wanted(), PICTURE).image, before)


def test_a_run_without_a_finished_stage_is_refused(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((finished_run / "config.yaml").read_bytes())
    with pytest.raises(RunFolderError, match="no finished stage yet"):
        GenerationSession(RunReader(tmp_path))


def test_a_size_is_part_of_the_settings(
    session: GenerationSession, finished_run: Path, tmp_path: Path
) -> None:
    settings = wanted(size="32x16", seed=5)
    drawn = session.generate(settings, PICTURE)
    assert drawn.image.shape == drawn.source.shape == (16, 32, 3)
    assert np.array_equal(drawn.image, by_command(finished_run, tmp_path, settings))


def test_a_picture_is_drawn_with_true_guidance_where_the_run_samples_with_it(finished_run: Path) -> None:
    run = RunReader(finished_run)
    model = load_base(run.settings, torch.device("cpu"))
    guided = run.settings.sampling.model_copy(update={"true_cfg_scale": 3.0})
    plain, away = (
        sample_picture(model, run.settings.model_copy(update={"sampling": sampling}), wanted(), [PICTURE])
        for sampling in (run.settings.sampling, guided)
    )
    assert not np.array_equal(plain, away)
