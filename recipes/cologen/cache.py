"""Fills caches ahead of training: `python -m recipes.cologen.cache --config my.yaml --stage editing`.

The same command again resumes. `--check` reads all that is kept and deletes what is damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from prw.errors import PrwError
from recipes.cologen.caching.encoder import Encoder, open_encoder
from recipes.cologen.cli import add_config_arguments, refuse, silence_loading_bars
from recipes.cologen.config.files import with_data
from recipes.cologen.config.run import RunConfig, load_config
from recipes.cologen.data.opening import DataSource, training_records
from recipes.cologen.errors import CologenError, DataError
from recipes.cologen.runs.interruption import STOPPED
from recipes.cologen.stages import select_stages
from recipes.cologen.training.growth import load_base_to_train
from recipes.cologen.training.input.filling import Filled, FixedExamples, fill
from recipes.cologen.training.run import join_processes

_SHOWN = 3


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 refused, 130 stopped."""
    args = _parser().parse_args(arguments)
    console = console or Console()
    silence_loading_bars()
    try:
        config = load_config(args.config, _overrides(args))
        _fill(config, args.stage, args.check, console)
    except (CologenError, PrwError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        console.print("stopped; run the same command to go on", highlight=False)
        return STOPPED
    return 0


def _fill(config: RunConfig, wanted: str, check: bool, console: Console) -> None:
    if config.data.cache.folder is None:
        raise DataError("there is no cache to fill: say where it is, --set data.cache.folder=FOLDER")
    accelerator = join_processes(config)
    console.quiet = console.quiet or not accelerator.is_main_process
    names = _stages(config, wanted)
    with accelerator.main_process_first():
        data = training_records(config.data)
    model = load_base_to_train(config, accelerator.device)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    encoder = open_encoder(model, accelerator.device, config.data.cache, announce=say)
    if check:
        for name, store in zip(encoder.stores._fields, encoder.stores, strict=True):
            if store is not None:
                say(f"{name}: {store.check()} entries were damaged and are gone")
    else:
        for name in names:
            _fill_stage(config, name, data, encoder, accelerator, console)
    accelerator.wait_for_everyone()
    encoder.flush()
    for line in encoder.facts():
        say(line)


def _stages(config: RunConfig, wanted: str) -> tuple[str, ...]:
    """The stages that were asked for and whose data is kept."""
    kept = config.data.cache.stages
    return tuple(name for name in select_stages(wanted, config.stage_names) if kept is None or name in kept)


def _fill_stage(
    config: RunConfig,
    name: str,
    data: DataSource,
    encoder: Encoder,
    accelerator: Accelerator,
    console: Console,
) -> None:
    source = data.stage(name)
    count = source.num_records or 0
    share = -(-count // accelerator.num_processes)
    told = time.monotonic()

    def advance(filled: Filled) -> None:
        nonlocal told
        if time.monotonic() - told >= config.logging.plain_seconds or filled.records == share:
            told = time.monotonic()
            console.print(
                f"{name}: {filled.records} of {share} records; {filled.encoded} encoded, "
                f"{filled.found} were there",
                highlight=False,
            )

    filled = fill(
        encoder,
        FixedExamples(source.records, count, name, config.dropout),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=config.machine.workers,
        advance=advance,
    )
    for problem in filled.broken[:_SHOWN]:
        console.print(f"left out: {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(filled.broken) > _SHOWN:
        console.print(f"left out: {len(filled.broken) - _SHOWN} more records", highlight=False)


def _overrides(args: argparse.Namespace) -> list[str]:
    folder = [] if args.folder is None else [f"data.cache.folder={json.dumps(str(args.folder))}"]
    return [*with_data(args.set, args.data), *folder]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.cologen.cache", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--folder", type=Path, help="where it is kept, in place of data.cache.folder")
    parser.add_argument("--check", action="store_true", help="read all that is kept, delete what is damaged")
    return parser


if __name__ == "__main__":
    sys.exit(main())
