"""One expert as a plain LoRA for stock diffusers, measured on a call of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prw import Weave
from prw.storage import LoraExport
from recipes.cologen.errors import RoutingQuestionError

FIXED = ("generator", "output_type", "output_routing", "return_dict")
"""Arguments of a call that an export sets itself."""
SAID = """{expert} as a plain LoRA: {path}
The router sent {chosen:.1%} of the source's {item}s to it, with a mean weight of {gate:.3f}. The LoRA acts on
every token with weight one, noise and text too.
Differences, as relative norms (0: equal): {mean:.3f} from the expert in its pool, mean over projections, and
{largest:.3f} at most; {output:.3f} between the latents that are generated."""


PROMPTS = (
    """Prompts were padded to {length} tokens in training: generate with max_sequence_length={length}."""
)


def export_measured(
    pipe: Any, weave: Weave, name: str, path: str | Path, seed: int, call: dict[str, Any]
) -> LoraExport:
    """Write an expert as a plain LoRA in diffusers' layout, and print how far it is from the pool.

    Args:
        pipe: The pipeline.
        weave: Its pool.
        name: Name of the expert.
        path: Folder to write.
        seed: Of the starting noise, with the pool and with the LoRA.
        call: Arguments of the call that is measured.

    Raises:
        RoutingQuestionError: The call has no picture, or sets what an export sets itself.
    """
    taken = sorted(set(FIXED) & set(call))
    if taken:
        raise RoutingQuestionError(
            f"export_lora generates latents from the noise of `seed` itself; leave {', '.join(taken)} out."
        )
    if call.get("image") is None:
        raise RoutingQuestionError(
            "export_lora measures on a call of the pipeline, and there is no image: without a source no "
            "expert acts. Give the arguments of a call: prompt=..., image=..., task=...; to export without "
            f"a measure: pipe.weave.export_lora({name!r}, path, layout='diffusers')."
        )

    def generated() -> Any:
        generator = torch.Generator().manual_seed(seed)
        return pipe(**call, generator=generator, output_type="latent", return_dict=False)

    report = weave.export_lora(name, path, layout="diffusers", measure=generated)
    length = pipe.generation.max_text_tokens
    Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(said(report, weave, length))
    return report


def said(report: LoraExport, weave: Weave, max_text_tokens: int | None = None) -> str:
    """Put a measured report into words.

    Args:
        report: The report.
        weave: Of the pool.
        max_text_tokens: Tokens that prompts were padded to in training, which stock diffusers does not know.
    """
    words = SAID if max_text_tokens is None else f"{SAID}\n{PROMPTS.format(length=max_text_tokens)}"
    return words.format(
        expert=report.expert,
        path=report.path,
        item=weave.settings.granularity,
        chosen=report.chosen,
        gate=report.mean_gate,
        mean=report.mean_difference,
        largest=report.max_difference,
        output=report.output_difference,
    )
