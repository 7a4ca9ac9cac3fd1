"""OmniEdit, MagicBrush, UltraEdit, InstructPix2Pix and ImgEdit: a picture before and after an instruction.

All have the same form under other names, so one function reads them, and a row of a table says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from recipes.cologen.data.layouts.layout import Layout, Reading
from recipes.cologen.data.licences import UNSTATED
from recipes.cologen.data.raw import RawPair, RawRecord
from recipes.cologen.data.sources.rows import Row
from recipes.cologen.data.text import is_text, text_of


class _Columns(NamedTuple):
    """Which columns of a set hold what."""

    source: str
    target: str
    prompts: Callable[[Row], list[str]]
    """The forms in which the edit is asked for."""
    caption: Callable[[Row], str]
    """What is seen after the edit; empty where the set does not say."""
    scores: tuple[str, ...] = ()
    kind: str | None = None


def _column(name: str) -> Callable[[Row], list[str]]:
    return lambda row: [text_of(row.get(name))]


def _caption(name: str) -> Callable[[Row], str]:
    return lambda row: text_of(row.get(name))


def _listed(name: str) -> Callable[[Row], list[str]]:
    """A column of several wordings of one instruction."""
    return lambda row: [text_of(value) for value in row.get(name) or () if is_text(value)]


def _first(value: Any) -> Any:
    """The only one of a list; a value that is no list is itself."""
    return value[0] if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else value


def _record(reading: Reading, columns: _Columns) -> RawRecord:
    """Every form of the prompt is a pair; the view samples one of them.

    Where the set has a caption of the result, that is the second form, if `captions` is on.
    """
    row = reading.row
    source = reading.picture(_first(row[columns.source]))
    target = reading.picture(_first(row[columns.target]))
    prompts = dict.fromkeys(columns.prompts(row))
    if reading.options.get("captions") and (caption := columns.caption(row)):
        prompts[caption] = None
    kind = str(row.get(columns.kind) or "given") if columns.kind else "given"
    return RawRecord(
        id=reading.id,
        picture=source,
        caption=columns.caption(row),
        origin=reading.origin(source, {name: row.get(name) for name in columns.scores}),
        pairs=tuple(RawPair("editing", target, prompt, kind) for prompt in prompts or ("",)),
    )


_OMNIEDIT_SCORES = ("sc_score_1", "sc_score_2", "pq_score", "o_score")
_ULTRAEDIT_SCORES = (
    *("clip_sim_source", "clip_sim_target", "clip_sim_dir", "clip_sim_image"),
    *("dinov2_sim", "ssim"),
)
_NOTHING = _caption("")
_FORMS = {
    "omniedit": _Columns(
        "src_img", "edited_img", _listed("edited_prompt_list"), _NOTHING, _OMNIEDIT_SCORES, "task"
    ),
    "magicbrush": _Columns("source_img", "target_img", _column("instruction"), _NOTHING),
    "ultraedit": _Columns(
        "source_image", "edited_image", _column("edit_prompt"), _caption("target_caption"), _ULTRAEDIT_SCORES
    ),
    "instructpix2pix": _Columns(
        "original_image", "edited_image", _column("edit_prompt"), _caption("edited_prompt")
    ),
    "imgedit": _Columns("input_images", "output_images", _column("prompt"), _NOTHING),
}


def _omniedit_reject(row: Row, options: Mapping[str, float]) -> str | None:
    score = row.get("o_score")
    low = options["min_score"] > 0 and (score is None or score < options["min_score"])
    return "score too low" if low else None


def _magicbrush_reject(row: Row, options: Mapping[str, float]) -> str | None:
    return "later turn" if options["first_turn_only"] and row["turn_index"] > 1 else None


def _ultraedit_reject(row: Row, options: Mapping[str, float]) -> str | None:
    for name in ("clip_sim_dir", "clip_sim_image", "dinov2_sim", "ssim"):
        least = options[f"min_{name}"]
        if least > 0 and (row.get(name) is None or row[name] < least):
            return f"{name} too low"
    return None


def _imgedit_reject(row: Row, options: Mapping[str, float]) -> str | None:
    for name in ("input_images", "output_images"):
        if isinstance(row[name], list) and len(row[name]) != 1:
            return "several pictures"
    return None


def _layout(name: str, columns: tuple[str, ...], **more: Any) -> Layout:
    form = _FORMS[name]
    return Layout(
        name=name,
        tasks=("editing",),
        columns=(form.source, form.target, *columns),
        texts=lambda row: form.prompts(row) or [""],
        record=lambda reading: _record(reading, form),
        **more,
    )


OMNIEDIT = _layout(
    "omniedit",
    ("edited_prompt_list",),
    home="https://huggingface.co/datasets/TIGER-Lab/OmniEdit-Filtered-1.2M",
    licence="mit",
    light=("edited_prompt_list", "o_score"),
    reject=_omniedit_reject,
    options={"min_score": 0},
    size="1,202,797 rows, 2.85 TB",
)
MAGICBRUSH = _layout(
    "magicbrush",
    ("instruction", "turn_index"),
    home="https://huggingface.co/datasets/osunlp/MagicBrush",
    licence="cc-by-4.0",
    light=("instruction", "turn_index"),
    reject=_magicbrush_reject,
    options={"first_turn_only": 0},
    size="8,807 rows (train)",
)
ULTRAEDIT = _layout(
    "ultraedit",
    ("edit_prompt",),
    home="https://huggingface.co/datasets/BleachNick/UltraEdit_500k",
    licence="cc-by-4.0",
    light=("edit_prompt", *_ULTRAEDIT_SCORES),
    reject=_ultraedit_reject,
    options={
        "captions": 0,
        **dict.fromkeys(("min_clip_sim_dir", "min_clip_sim_image", "min_dinov2_sim", "min_ssim"), 0),
    },
    size="500,000 rows, 195 GB (FreeForm); 108,179 rows, 46 GB (UltraEdit_Region_Based_100k)",
)
INSTRUCTPIX2PIX = _layout(
    "instructpix2pix",
    ("edit_prompt", "edited_prompt"),
    home="https://huggingface.co/datasets/timbrooks/instructpix2pix-clip-filtered",
    licence=UNSTATED,
    light=("edit_prompt",),
    options={"captions": 0},
    size="313,010 rows",
)
IMGEDIT = _layout(
    "imgedit",
    ("prompt",),
    home="https://huggingface.co/datasets/sysuyy/ImgEdit",
    licence=UNSTATED,
    light=("input_images", "output_images", "prompt"),
    reject=_imgedit_reject,
    size="1,200,000 rows",
)
