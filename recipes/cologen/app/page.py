"""The page: a tab for each task, made of gradio's components; what it answers is in answers.py."""

from __future__ import annotations

import functools
import html
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from prw.errors import PrwError
from recipes.cologen.app.answers import A_MAP, Answers, Asked
from recipes.cologen.app.examples import TASKS, Task
from recipes.cologen.app.uploads import easel, on_easel, only_read_here, upload
from recipes.cologen.errors import CologenError
from recipes.cologen.picture_settings import FULL_POOL, NO_EXPERTS

LOG = logging.getLogger(__name__)
KEPT_SECONDS = 3600
"""How long uploads, results and files for download are kept."""
SETTINGS = "cologen-settings-"
CSS = """
.cologen-picture img {image-rendering: pixelated; min-height: 14rem; object-fit: contain;}
footer {display: none !important;}
"""


def build_page(answers: Answers) -> gr.Blocks:
    """Make the page of a drawing room."""
    room, limits = answers.room, answers.limits
    world = room.settings.data.source == "world"
    with gr.Blocks(title="CoLoGen", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# CoLoGen\nThe run *{html.escape(room.settings.name)}*, on this machine.")
        with gr.Tabs():
            for name, task in TASKS.items():
                if name in room.settings.stage_names:
                    with gr.Tab(name, id=name):
                        _tab(answers, name, task, task.world if world else task.photos)
    page.queue(max_size=limits.waiting, default_concurrency_limit=4, api_open=False)
    return page


def in_words(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Turn refusals into the page's messages; a fault of ours goes to the log, not to the user."""

    @functools.wraps(answer)
    def said(*values: Any) -> Any:
        try:
            return answer(*values)
        except (CologenError, PrwError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        except gr.Error:
            raise
        except Exception as error:
            LOG.exception("the page could not answer")
            raise gr.Error(
                f"This is a fault of the page ({type(error).__name__}); its log says more.",
                print_exception=False,
            ) from error

    return said


def _tab(answers: Answers, name: str, task: Task, prompts: tuple[str, ...]) -> None:
    gr.Markdown(task.says)
    with gr.Row():
        with gr.Column():
            image = upload(answers.limits, f"{name}-image")
            painted = [easel(answers.limits, f"{name}-easel")] if name == "inpainting" else []
            kind = gr.Radio(
                [A_MAP, *answers.room.made_maps], value=A_MAP, label="The picture is, or is made into"
            )
            kind.visible = name == "control"
            prompt = gr.Textbox(label="Prompt", max_length=answers.limits.letters, elem_id=f"{name}-prompt")
            gr.Examples([[words] for words in prompts], [prompt], label="Prompts", api_visibility="private")
            settings = _settings(answers, name)
            button = gr.Button("Draw", variant="primary", elem_id=f"{name}-draw")
        with gr.Column():
            seen, *results = _results(name)

    def draw(given: Any, kind: str, prompt: str, *rest: Any) -> tuple[Any, ...]:
        seed, steps, guidance, pool, *layers = rest
        picture, mask = only_read_here(given), only_read_here(layers[0]) if layers else None
        answer = answers.draw(Asked(name, picture, mask, prompt or "", seed, steps, guidance, pool, kind))
        file = gr.DownloadButton(value=str(_file(name, answer.settings)), interactive=True)
        return answer.picture, answer.shares, answer.notes, file

    button.click(
        in_words(draw),
        [image, kind, prompt, *settings, *painted],
        results,
        concurrency_limit=1,
        concurrency_id="model",
        api_visibility="private",
    )
    quietly = {"show_progress": "hidden", "api_visibility": "private"}
    if painted:
        image.change(in_words(lambda given: on_easel(only_read_here(given))), image, painted, **quietly)
    if name == "control":
        for event in (image.change, kind.change):
            event(
                in_words(lambda given, kind: answers.preview(only_read_here(given), kind)),
                [image, kind],
                seen,
                **quietly,
            )


def _results(name: str) -> list[Any]:
    """The map, the picture, its shares, notes and settings; all but the map in the order of an answer."""
    seen = gr.Image(label="What the model sees", interactive=False, visible=name == "control", buttons=[])
    _as_pixels(seen, f"{name}-seen")
    result = gr.Image(label="Result", interactive=False, format="png", buttons=["download"])
    _as_pixels(result, f"{name}-result")
    notes = gr.Textbox(label="Notes", interactive=False, elem_id=f"{name}-notes")
    shares = gr.Image(
        label="Which expert saw what",
        show_label=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_id=f"{name}-shares",
    )
    download = gr.DownloadButton("Settings of this picture", interactive=False, elem_id=f"{name}-settings")
    return [seen, result, shares, notes, download]


def _settings(answers: Answers, name: str) -> list[Any]:
    """Seed, steps, guidance and pool, in the order in which `Asked` has them."""
    room, sampling = answers.room, answers.room.settings.sampling
    pools = room.pools(name)
    says = {FULL_POOL: "full pool", NO_EXPERTS: "experts off"}
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{name}-seed")
        steps = gr.Slider(
            1, answers.limits.steps, value=min(sampling.steps, answers.limits.steps), step=1, label="Steps"
        )
    guidance = gr.Slider(1, 10, value=sampling.guidance, label="Guidance", visible=room.reads_guidance)
    pool = gr.Radio(
        [(says.get(one, f"as of {one}"), one) for one in pools],
        value=pools[0],
        label="Experts" if name in pools else f"Experts (stage {name} is not finished)",
        elem_id=f"{name}-pool",
    )
    return [seed, steps, guidance, pool]


def _as_pixels(component: Any, name: str) -> None:
    component.elem_id = name
    component.elem_classes = ["cologen-picture"]


def _file(name: str, text: str) -> Path:
    """A new file for the download, which gradio copies to its cache; those of an hour ago are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{SETTINGS}*"):
        if old.stat().st_mtime < time.time() - KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=SETTINGS)) / f"{name}.json"
    path.write_text(text, encoding="utf-8")
    return path
