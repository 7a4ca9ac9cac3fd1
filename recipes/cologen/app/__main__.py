"""Starts the page in the browser.

python -m recipes.cologen.app --checkpoint runs/tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prw.errors import PrwError
from recipes.cologen.app.address import check_address, port
from recipes.cologen.app.limits import Limits
from recipes.cologen.cli import add_checkpoint_argument, plain_console, positive, silence_loading_bars
from recipes.cologen.errors import CologenError
from recipes.cologen.generation.session import GenerationSession
from recipes.cologen.runs.reader import RunReader

try:
    from recipes.cologen.app.serving import LOOPBACK, serve
except ModuleNotFoundError as missing:
    if missing.name not in ("gradio", "starlette"):
        raise
    sys.exit("error: the page needs gradio, which is not installed here. Run: pip install 'prw[app]'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 closed, 1 refused."""
    args = _parser().parse_args(arguments)
    silence_loading_bars()
    console = plain_console()
    limits = Limits(upload_bytes=args.most_upload * 2**20, pixels=args.most_pixels * 1_000_000)
    try:
        check_address(args.host, args.port)  # loading takes a while
        session = GenerationSession(RunReader(args.checkpoint))
        if args.host not in LOOPBACK:
            console.print(
                f"note: the page listens on {args.host}, so others may reach it. It asks nobody who they "
                "are; put it behind something that does, or leave --host out."
            )
        serve(session, limits, args.host, args.port, console.print)
    except (CologenError, PrwError) as error:
        console.print(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("closed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cologen.app",
        description="A page in the browser that generates with a trained run.",
    )
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=port, help="port (default: the first free one from 7860 on)")
    parser.add_argument(
        "--most-upload", type=positive, default=10, metavar="MIB", help="largest upload (default: 10)"
    )
    parser.add_argument(
        "--most-pixels", type=positive, default=16, metavar="MILLIONS", help="largest picture (default: 16)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
