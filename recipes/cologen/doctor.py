"""Says before a run what it trains, needs and costs: `python -m recipes.cologen.doctor --config tiny`.

Loads no weights and takes no step, unless --probe asks for three. What would keep the run from working is
named with the setting to change; what could not be checked, with the reason and the way to have it checked.

Exit status: 0, all was checked and nothing found; 1, something would keep the run from working, or the
question was wrong; 2, the command line was wrong; 3, nothing was found, but not all could be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.cli import add_config_arguments, positive, refuse, silence_loading_bars
from recipes.cologen.config.files import with_data
from recipes.cologen.config.run import load_config
from recipes.cologen.costs.gpus import GPUS, gpu_memory, memory_size
from recipes.cologen.diagnosis.diagnose import Diagnosis, DiagnosisRequest, Gpu, add_probe, diagnose
from recipes.cologen.diagnosis.environment import gpu_bytes
from recipes.cologen.diagnosis.probe import probe
from recipes.cologen.diagnosis.show import show
from recipes.cologen.errors import CologenError
from recipes.cologen.stages import select_stages
from recipes.cologen.training.preflight import Problem

NOT_ALL_CHECKED = 3
"""Exit status where nothing was found, but not all could be checked."""


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the command and return its exit status, as the top of this file says."""
    args = _parser().parse_args(arguments)
    console = console or Console()
    silence_loading_bars()
    try:
        request = _request(args)
        found = diagnose(request)
        if args.probe and not found.problems:
            found = _probed(request, found)
    except (CologenError, PrwError) as error:
        return refuse(error)
    show(found, console)
    if args.probe and "measured_peak_bytes" not in found.facts:
        console.print("not probed, since the run would not work", markup=False, highlight=False)
    if args.json is not None:
        args.json.write_text(json.dumps(_as_json(found), indent=2) + "\n", encoding="utf-8")
    if found.problems:
        return 1
    return NOT_ALL_CHECKED if found.unchecked else 0


def _request(args: argparse.Namespace) -> DiagnosisRequest:
    config = load_config(args.config, with_data(args.set, args.data))
    stages = select_stages(args.stage, config.stage_names)
    return DiagnosisRequest(config, stages, args.output, args.processes, _gpu(args), args.probe)


def _gpu(args: argparse.Namespace) -> Gpu | None:
    """The GPU that is named, or the one that is here."""
    if args.gpu_memory is not None:
        return Gpu(args.gpu or "the GPU", memory_size(args.gpu_memory))
    if args.gpu is not None:
        return Gpu(*gpu_memory(args.gpu))
    here = gpu_bytes()
    return None if here is None else Gpu("this GPU", here, is_here=True)


def _probed(request: DiagnosisRequest, found: Diagnosis) -> Diagnosis:
    """Add what a few real steps take; training refuses what only it can see."""
    try:
        measured = probe(request.config, request.stages, request.micro_batch, request.output)
    except (CologenError, PrwError) as error:
        return found._replace(problems=(*found.problems, Problem("probe", str(error))))
    if found.unchecked:
        found = diagnose(request)  # training has fetched what was not here
    add_probe(found.facts, request, measured)
    return found


def _as_json(found: Diagnosis) -> dict[str, Any]:
    return {
        **found.facts,
        "problems": [problem._asdict() for problem in found.problems],
        "unchecked": [one._asdict() for one in found.unchecked],
        "warnings": list(found.warnings),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.cologen.doctor", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/run"), help="the folder of the run")
    parser.add_argument("--gpu", metavar="NAME", help=f"plan for another GPU: {', '.join(GPUS)}")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="plan for a GPU of this memory, such as 24GB")
    parser.add_argument(
        "--processes",
        type=positive,
        default=int(os.environ.get("WORLD_SIZE", "1")),
        help="how many share a batch (default: 1)",
    )
    parser.add_argument("--probe", action="store_true", help="take three real steps of every stage here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it for a machine, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
