"""Serves the page: one process, on loopback unless told otherwise, nothing shared, no telemetry."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from starlette.middleware import Middleware

from recipes.cologen.app.address import AddressError
from recipes.cologen.app.answers import Answers
from recipes.cologen.app.guard import Guard
from recipes.cologen.app.limits import Limits
from recipes.cologen.app.page import CSS, build_page
from recipes.cologen.generation.session import GenerationSession

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})


WARNS_OF_CLIP = "diffusers.pipelines.flux.pipeline_flux"
"""The logger that repeats what CLIP, which only gives the pooled vector, does not read of a prompt."""


def serve(
    session: GenerationSession, limits: Limits, host: str, port: int | None, said: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        session: Where pictures are generated.
        limits: What is taken from users.
        host: Address to listen on.
        port: Port; None takes the first free one from 7860 on.
        said: Told where the page is, once it is there.

    Raises:
        AddressError: Nothing can be served there.
    """
    with tempfile.TemporaryDirectory(prefix="cologen-app-") as folder:
        _only_our_settings(Path(folder))
        keep_prompts_out_of_the_log()
        # What gradio decodes by itself is refused by the same measure: PIL raises at twice this number.
        PilImage.MAX_IMAGE_PIXELS = -(-limits.pixels // 2)
        page = build_page(Answers(session, limits))
        guard = Middleware(
            Guard,
            limits=limits,
            uploads=Path(folder),
            names=LOOPBACK if host in LOOPBACK else None,
        )
        url = _launch(page, guard, host, port, limits)
        said(f"the page is at {url} (Ctrl-C closes it)")
        page.block_thread()


def keep_prompts_out_of_the_log() -> None:
    """Let diffusers say nothing of what users typed; T5 reads the whole prompt, or it is refused."""
    logging.getLogger(WARNS_OF_CLIP).addFilter(_names_no_input)


def _names_no_input(record: logging.LogRecord) -> bool:
    return "part of your input was truncated" not in record.getMessage()


def _launch(page: Any, guard: Middleware, host: str, port: int | None, limits: Limits) -> str:
    """Start the server beside this thread and return where the page is."""
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            css=CSS,
            max_file_size=limits.upload_bytes,
            allowed_paths=[],
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:  # its words name variables that are not read here
        said = f"port {port} cannot be opened" if port else "no port from 7860 on is free"
        raise AddressError(f"{said} on {host}; give another with --port.") from error
    return str(url)


def _only_our_settings(folder: Path) -> None:
    """Keep gradio's environment variables from changing what the command line says."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    # Files for download are made here too, so that they go with the page.
    tempfile.tempdir = str(folder)
