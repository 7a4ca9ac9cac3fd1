"""Puts a loaded base on a device as the machine's settings say: where encoders wait, compiling, attention."""

from __future__ import annotations

import torch
from diffusers import ModelMixin

from recipes.cologen.config.model import MachineSettings
from recipes.cologen.errors import MachineError
from recipes.cologen.flux.base import FluxBase
from recipes.cologen.flux.offloading import offload, offload_sequentially

TRACES_OF_A_BLOCK = 64
"""How often torch may trace a block in a process: in training and sampling, five stages, some sizes."""


def place(
    model: FluxBase,
    machine: MachineSettings,
    device: torch.device,
    transformer_device: torch.device | None = None,
) -> None:
    """Move the parts to the device, and prepare the transformer, which may be wanted elsewhere at first.

    Args:
        model: the base.
        machine: how it is to fit.
        device: where to.
        transformer_device: where the transformer goes instead, to be split over devices later.

    Raises:
        MachineError: attention or compiling is asked for in a way that this machine cannot do.
    """
    transformer, *encoders = model.modules()
    transformer.to(transformer_device or device)
    if machine.encoders == "offload":
        offload(encoders, transformer, device)
    for encoder in encoders if machine.encoders != "offload" else ():
        if machine.encoders == "sequential_offload":
            offload_sequentially(encoder, device)
        else:
            encoder.to(device)
    if machine.gradient_checkpointing:
        model.transformer.enable_gradient_checkpointing()
    if machine.attention is not None:
        set_attention(model.transformer, machine.attention)
    if machine.compile:
        compile_blocks(model.transformer, machine.compile_backend)


def set_attention(transformer: ModelMixin, backend: str) -> None:
    """Choose how attention is computed.

    diffusers keeps the choice on each attention of this transformer, and makes it the default of the whole
    process for others, which `reset_attention_backend` does not undo.

    Raises:
        MachineError: diffusers does not know the backend, or its package is missing.
    """
    try:
        transformer.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise MachineError(
            f"machine.attention={backend} cannot be used: {error} Install what it needs, or leave it out: "
            "torch's own attention is used then."
        ) from error


def compile_blocks(transformer: ModelMixin, backend: str) -> None:
    """Let torch compile each kind of block at its first call; all blocks of a kind share what was traced.

    Source keys and values are kept and read between graphs, so a block may be several. Torch's limits on
    traces of one function, which are the process's, are raised so far that a run keeps below them.

    Raises:
        MachineError: torch has no such backend.
    """
    check_compile_backend(backend)
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, TRACES_OF_A_BLOCK)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, TRACES_OF_A_BLOCK)
    transformer.compile_repeated_blocks(backend=backend)


def check_compile_backend(backend: str) -> None:
    """Refuse a compiler that torch does not have.

    Raises:
        MachineError: Lists those that it has.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise MachineError(
            f"machine.compile_backend is {backend!r}; this torch has {', '.join(known)}. Leave it out for "
            "inductor."
        )
