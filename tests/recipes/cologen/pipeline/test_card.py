"""The model card of a saved pipeline, and the whole on the hub and back; the hub is a folder here."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image

import prw
from recipes.cologen.pipeline import Card, CoLoGenPipeline, Shown

BASE_CARD = """---
license: other
license_name: flux-1-dev-non-commercial-license
license_link: LICENSE.md
base_model: somebody/else
---

# A base
"""


@pytest.fixture
def base(build, tmp_path: Path) -> Path:
    """A base with a card and a licence of its own."""
    folder = tmp_path / "my-base"
    build(experts=False).save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD)
    (folder / "LICENSE.md").write_text("for no commerce")
    return folder


@pytest.fixture
def run(build, tmp_path: Path) -> Path:
    """A run of one stage, as far as a pipeline reads it."""
    folder = tmp_path / "run"
    pool = folder / "checkpoints" / "inpainting" / "prw"
    build().weave.save_pretrained(pool)
    (pool.parent / "stage.json").write_text("{}")
    (folder / "config.yaml").write_text(
        "name: x\nbase: {path: nowhere}\nstages: {inpainting: {steps: 1}}\nflow: {source_timestep: zero}\n"
    )
    (folder / "data_card.md").write_text("# Data of the run x\n\n## Data sets\n\nUltraEdit (cc-by-4.0)\n")
    (folder / "data_card.json").write_text('{"run": "x"}')
    return folder


@pytest.fixture
def pipe(base: Path, run: Path) -> CoLoGenPipeline:
    made = CoLoGenPipeline.from_pretrained(base, prw=run)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that is a folder, under the hub's own client and under diffusers' downloads."""
    root, asked = tmp_path / "hub", []

    def create(api: HfApi, repo_id: str, **options: object) -> SimpleNamespace:
        asked.append((repo_id, api.token, options))
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=repo_id)

    def upload(
        api: HfApi, repo_id: str, folder_path: str, path_in_repo: str | None, **options: object
    ) -> str:
        asked.append((repo_id, path_in_repo, options))
        shutil.copytree(folder_path, root / repo_id / (path_in_repo or ""), dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "file_exists", lambda _, repo, name: (root / repo / name).is_file())
    monkeypatch.setattr(
        "recipes.cologen.pipeline.opening.snapshot_download", lambda name, **_: str(root / name)
    )
    monkeypatch.setattr(CoLoGenPipeline, "download", lambda name, **_: str(root / name))
    return SimpleNamespace(root=root, asked=asked)


def header(folder: Path) -> dict[str, object]:
    data: dict[str, object] = ModelCard.load(folder / "README.md").data.to_dict()
    return data


def test_the_card_says_what_is_known(pipe, photo, tools, tmp_path) -> None:
    drawn = tools.draw(pipe, "a | red\ncircle", photo, output_type="pil").images[0]
    shown = [Shown(drawn, "a | red\ncircle", "editing", photo), Shown(drawn, "blue square")]
    pipe.save_pretrained(tmp_path / "whole", card=Card(title="Mine", about="It is new.", pictures=shown))
    folder = tmp_path / "whole"
    text = (folder / "README.md").read_text()
    assert header(folder) == {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-image",
        "tags": ["cologen", "prw", "routed-lora"],
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": "LICENSE.md",
    }  # and no base_model: a folder of this machine is none on the hub
    assert "# Mine\n" in text and "It is new." in text and str(tmp_path) not in text
    assert "| base | my-base |" in text and "| experts, oldest first | inpainting, grounding |" in text
    assert "| rank, scale | 2, 2 |" in text and "| source timestep | zero |" in text
    assert "[flux-1-dev-non-commercial-license](LICENSE.md)" in text
    assert (folder / "LICENSE.md").read_text() == "for no commerce"
    assert "### Data of the run x" in text and "#### Data sets" in text and "UltraEdit (cc-by-4.0)" in text
    assert json.loads((folder / "data_card.json").read_text()) == {"run": "x"}
    rows = [line for line in text.splitlines() if "-drawn" in line]
    assert rows[0].startswith("| ![01-source](pictures/01-source.png) | a \\| red circle | editing |")
    assert rows[1].startswith("|  | blue square |  | ![02-drawn](pictures/02-drawn.png) |")
    with (
        Image.open(folder / "pictures" / "01-drawn.png") as kept,
        Image.open(folder / "pictures/01-source.png") as source,
    ):
        assert np.array_equal(np.asarray(kept), np.asarray(drawn))
        assert np.array_equal(np.asarray(source), photo)


def test_a_folder_that_is_opened_and_saved_again_keeps_what_its_card_knew(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "once")
    CoLoGenPipeline.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    assert header(tmp_path / "once") == header(tmp_path / "twice")
    for name in ("LICENSE.md", "data_card.md", "data_card.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    assert "UltraEdit (cc-by-4.0)" in (tmp_path / "twice/README.md").read_text()


def test_what_is_not_known_is_said(build, tmp_path) -> None:
    build().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "## Data\n\nNot recorded." in text and "licence is not recorded here" in text
    assert "license" not in header(tmp_path) and "## Pictures" not in text
    build().save_pretrained(tmp_path / "told", card=Card(licence="apache-2.0", data="Drawn by hand."))
    told = (tmp_path / "told/README.md").read_text()
    assert header(tmp_path / "told")["license"] == "apache-2.0" and "## Data\n\nDrawn by hand." in told


def test_a_card_that_somebody_wrote_stays(pipe, tmp_path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/README.md").write_text("by hand")
    pipe.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole/README.md").read_text() == "by hand"
    pipe.save_pretrained(tmp_path / "whole", card=Card(title="Made"))
    assert "# Made" in (tmp_path / "whole/README.md").read_text()


def test_what_is_pushed_comes_back_whole(pipe, tools, photo, hub) -> None:
    before = tools.draw(pipe, "a", photo)
    address = pipe.push_to_hub("me/drawer", "first", private=True, token="hf_x", card=Card(title="Drawer"))
    assert address == "https://huggingface.co/me/drawer/commit/1"
    assert hub.asked == [
        ("me/drawer", "hf_x", {"private": True, "exist_ok": True}),
        ("me/drawer", None, {"commit_message": "first", "create_pr": False}),
    ]
    fetched = CoLoGenPipeline.from_pretrained("me/drawer")
    fetched.set_progress_bar_config(disable=True)
    assert fetched.weave.experts == pipe.weave.experts and fetched.config.source_timestep == "zero"
    assert tools.difference(before, tools.draw(fetched, "a", photo)) < 1e-5
    pipe.push_to_hub("me/drawer")  # the card that is there stays
    assert "# Drawer" in (hub.root / "me/drawer/README.md").read_text()
    fetched.push_to_hub("me/other", subfolder="v2")
    assert header(hub.root / "me/other/v2")["license_name"] == "flux-1-dev-non-commercial-license"


def test_a_base_of_the_hub_is_named_in_the_header(base, run, hub, tmp_path) -> None:
    shutil.copytree(base, hub.root / "labs/base")
    pipe = CoLoGenPipeline.from_pretrained("labs/base", prw=run)
    pipe.save_pretrained(tmp_path / "whole")
    assert header(tmp_path / "whole")["base_model"] == "labs/base"
    again = CoLoGenPipeline.from_pretrained(tmp_path / "whole")
    again.save_pretrained(tmp_path / "again")
    assert header(tmp_path / "again")["base_model"] == "labs/base"


def test_what_cannot_be_saved_is_refused_before_the_hub_is_asked(pipe, hub) -> None:
    pipe.transformer.proj_out.to("meta")
    with pytest.raises(prw.UnsupportedError, match="the transformer is offloaded"):
        pipe.push_to_hub("me/drawer")
    assert hub.asked == []


def test_an_error_of_the_hub_is_passed_on(pipe, monkeypatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(ConnectionError, match="no network"):
        pipe.push_to_hub("me/drawer")
    assert torch.isfinite(pipe.transformer.proj_out.weight).all()
