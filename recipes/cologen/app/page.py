"""The page: a tab for each task, made of gradio's components; what it answers is in answers.py."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from prw.errors import PrwError
from recipes.cologen.app.about import TASKS, about, first_try, words
from recipes.cologen.app.answers import A_MAP, Answers, Request, shown
from recipes.cologen.app.limits import in_short
from recipes.cologen.app.uploads import easel, on_easel, only_read_here, unchecked, upload
from recipes.cologen.errors import CologenError
from recipes.cologen.generation.settings import FULL_POOL, NO_EXPERTS

LOG = logging.getLogger(__name__)
KEPT_SECONDS = 3600
"""How long uploads, results and files for download are kept."""
SETTINGS = "cologen-settings-"
NOTES, REFUSED = "Notes", "Not generated, because"
"""What the box of notes is called."""
CLOSE_MESSAGES = "() => {document.querySelectorAll('.toast-close').forEach(one => one.click())}"
"""Of an upload that was refused: gradio shows it over the page, and it would cover what is generated next."""
CSS = """
.cologen-picture img {image-rendering: pixelated; min-height: 14rem; object-fit: contain;}
.cologen-refused {border-left: 4px solid #b3261e !important;}
footer {display: none !important;}
"""


def build_page(answers: Answers) -> gr.Blocks:
    """Make the page of a drawing session."""
    run, limits = answers.session.settings, answers.limits
    with gr.Blocks(title="CoLoGen", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.Markdown(f"# CoLoGen\n{about(run)}")
        with gr.Tabs():
            for name in TASKS:
                if name in run.stage_names:
                    with gr.Tab(name, id=name):
                        _tab(answers, name)
        if known := words(run):
            with gr.Accordion("Words that it reads", open=False):
                gr.Markdown("\n".join(f"* {what}: {', '.join(those)}" for what, those in known.items()))
    page.queue(max_size=limits.waiting, default_concurrency_limit=4, api_open=False)
    return page


def in_words(answer: Callable[..., tuple[Any, ...]], instead: tuple[Any, ...]) -> Callable[..., Any]:
    """Let refusals be read in Notes, where they stay; a fault of ours goes to the log, not to the user.

    Args:
        answer: Gives the values of an event's outputs; the last of them is the text of Notes.
        instead: The other outputs of an event that is refused.
    """

    @functools.wraps(answer)
    def said(*values: Any) -> Any:
        try:
            *others, notes = answer(*values)
            noted = gr.Textbox(notes, label=NOTES, elem_classes=[])
        except (CologenError, PrwError) as error:
            typed = max((value for value in values if isinstance(value, str)), key=len, default="")
            others, noted = [*instead], _refused(in_short(str(error), typed))
        except Exception as error:
            LOG.exception("the page could not answer")
            fault = f"This is a fault of the page ({type(error).__name__}); its log says more."
            others, noted = [*instead], _refused(fault)
        return (*others, noted) if others else noted

    return said


def _refused(because: str) -> Any:
    return gr.Textbox(because, label=REFUSED, elem_classes=["cologen-refused"])


def _tab(answers: Answers, name: str) -> None:
    gr.Markdown(TASKS[name].says)
    with gr.Row():
        with gr.Column(scale=2 if name == "inpainting" else 1):
            with gr.Row():
                image = upload(answers.limits, f"{name}-image")
                with gr.Column(visible=False) as beside:  # the easel is nothing without a picture
                    painted = [easel(answers.limits, f"{name}-easel")] if name == "inpainting" else []
            trying = gr.Button("Try an example: its picture and its prompt", size="sm", elem_id=f"{name}-try")
            kind = unchecked(
                gr.Radio(
                    [A_MAP, *answers.session.made_maps], value=A_MAP, label="The picture is, or is made into"
                )
            )
            kind.visible = name == "control"
            prompt = gr.Textbox(label="Prompt", max_length=answers.limits.letters, elem_id=f"{name}-prompt")
            button = gr.Button("Draw", variant="primary", elem_id=f"{name}-draw")
            _offer(answers, name, prompt)
            settings = _settings(answers, name)
        with gr.Column():
            results = _results(name)

    def generate(given: Any, kind: str, prompt: str, *rest: Any) -> tuple[Any, ...]:
        seed, steps, guidance, size, pool, *layers = rest
        read, mask = only_read_here(given), only_read_here(layers[0]).image if layers else None
        answer = answers.generate(
            Request(name, read.image, mask, prompt or "", seed, steps, guidance, pool, kind, size or "")
        )
        file = gr.DownloadButton(value=str(_file(name, answer.settings)), interactive=True)
        notes = "\n".join(note for note in (read.notice, answer.notes) if note)
        return answer.picture, answer.shares, file, notes

    button.click(fn=None, js=CLOSE_MESSAGES, api_visibility="private")
    button.click(
        in_words(generate, (None, None, gr.update(value=None, interactive=False))),
        [image, kind, prompt, *settings, *painted],
        results[1:],
        concurrency_limit=1,
        concurrency_id="model",
        api_visibility="private",
    )
    _look(answers, name, [image, kind], [beside, *painted], results)
    _try(answers, name, trying, [image, kind, prompt])


def _look(answers: Answers, name: str, given: list[Any], easels: list[Any], results: list[Any]) -> None:
    """Show what becomes of a picture as soon as it is given: on the easel, as a map, and in Notes."""
    seen, notes = results[0], results[-1]
    shown = {"inpainting": easels, "control": [seen]}.get(name, [])

    def look(given: Any, kind: str) -> tuple[Any, ...]:
        image, notice, _ = only_read_here(given)
        if name == "inpainting":
            return gr.update(visible=image is not None), on_easel(image), notice
        return (answers.preview(image, kind), notice) if name == "control" else (notice,)

    refused = (gr.update(visible=False), None) if name == "inpainting" else (None,) * len(shown)
    for field in given if name == "control" else given[:1]:
        field.change(
            in_words(look, refused),
            given,
            [*shown, notes],
            show_progress="hidden",
            api_visibility="private",
        )


def _try(answers: Answers, name: str, button: Any, fields: list[Any]) -> None:
    """Let a button fill in an example; there is none to press where no example travels with the code."""
    example = first_try(answers.session.settings, name)
    button.visible = example is not None
    if example is not None:
        filled = shown(example.image), A_MAP, example.prompt
        button.click(lambda: filled, None, fields, show_progress="hidden", api_visibility="private")


def _offer(answers: Answers, name: str, prompt: Any) -> None:
    """Prompts to click."""
    task = TASKS[name]
    offered = task.world if answers.session.settings.data.source == "world" else task.photos
    gr.Examples([[one] for one in offered], [prompt], label="Prompts to click", api_visibility="private")


def _results(name: str) -> list[Any]:
    """The map, then in the order of an answer: the picture, its shares, its settings, and notes."""
    notes = gr.Textbox(
        label=NOTES,
        placeholder="What had to be changed, or why nothing was generated",
        lines=2,
        interactive=False,
        elem_id=f"{name}-notes",
    )
    seen = gr.Image(label="What the model sees", interactive=False, visible=name == "control", buttons=[])
    _as_pixels(seen, f"{name}-seen")
    result = gr.Image(label="Result", interactive=False, format="png", buttons=["download"])
    _as_pixels(result, f"{name}-result")
    shares = gr.Image(
        label="Which expert saw what",
        interactive=False,
        format="png",
        buttons=[],
        elem_id=f"{name}-shares",
    )
    download = gr.DownloadButton("Settings of this picture", interactive=False, elem_id=f"{name}-settings")
    return [seen, result, shares, download, notes]


def _settings(answers: Answers, name: str) -> list[Any]:
    """Seed, steps, guidance, size and pool."""
    session, sampling = answers.session, answers.session.settings.sampling
    pools = session.pools(name)
    says = {FULL_POOL: "full pool", NO_EXPERTS: "experts off"}
    with gr.Row():
        seed = unchecked(gr.Number(0, label="Seed", elem_id=f"{name}-seed"))
        most = answers.limits.steps
        steps = unchecked(gr.Slider(1, most, value=min(sampling.steps, most), step=1, label="Steps"))
        steps.elem_id = f"{name}-steps"
    guidance = unchecked(gr.Slider(1, 10, value=sampling.guidance, label="Guidance"))
    guidance.visible = session.reads_guidance
    size = unchecked(
        gr.Textbox(
            label="Size",
            placeholder="WIDTHxHEIGHT, such as 640x480; empty: as the run generates",
            elem_id=f"{name}-size",
        )
    )
    pool = gr.Radio(
        [(says.get(one, f"as of {one}"), one) for one in pools],
        value=pools[0],
        label="Experts" if name in pools else f"Experts (stage {name} is not finished)",
        elem_id=f"{name}-pool",
    )
    return [seed, steps, guidance, size, unchecked(pool)]


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
