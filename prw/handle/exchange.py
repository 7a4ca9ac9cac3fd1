"""The pool and its experts on disk: saved, exported as plain LoRAs, and plain LoRAs taken in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from prw.errors import first_few
from prw.handle.hold import Hold
from prw.storage import (
    Layout,
    LoraExport,
    LoraImport,
    fit_lora,
    measure_expert,
    place_lora,
    rank_pattern,
    read_foreign,
    save_pool,
    write_lora,
)
from prw.tuner import grow, refresh_training, trained_beside


class Exchange(Hold):
    """The part of the handle that reads and writes files."""

    def save_pretrained(self, path: str | Path) -> None:
        """Save the pool as a PEFT folder: adapter_config.json, adapter_model.safetensors, README.md.

        The folder appears whole or not at all; other files in it are kept. Where FSDP2 has split the weights,
        every process calls this, and rank 0 writes the same file as one process would. What trains beside the
        pool, as a classification head that was unfrozen, is not in it, and is named in a warning.

        Raises:
            StorageError: if `path` is a file.
            UnsupportedError: if the configuration has `modules_to_save`, which only PEFT saves.
        """
        save_pool(Path(path), self._layers(), self.adapter, self.config)
        beside = list(trained_beside(self.model, self.adapter))
        if beside:
            warnings.warn(
                f"{len(beside)} parameters train beside the pool ({first_few(list(beside))}) and are not "
                f"in {path}, "
                "which holds the pool alone. Save them with the rest of your checkpoint, or freeze them.",
                stacklevel=2,
            )

    def export_lora(
        self, name: str, path: str | Path, *, layout: Layout = "peft", measure: Any = None
    ) -> LoraExport:
        """Save one expert as a plain LoRA, for use without prw.

        The router is not part of it: the LoRA acts on every token with weight one, where the pool weighs the
        expert by its probability (unless `gate="unit"`) and only where the router chose it. The README beside
        it says so, and `measure` says how far that is from the pool.

        Args:
            name: Name of the expert.
            path: Folder to write.
            layout: "peft" for `PeftModel.from_pretrained`; "diffusers" for `pipe.load_lora_weights` and
                `model.load_lora_adapter(path, prefix="transformer", use_safetensors=True)` ("unet" for a
                UNet), with the scale folded into B.
            measure: Inputs to measure the difference on, without gradients, noise or dropout: a mapping of
                the model's keyword arguments, its one argument, or a function that runs the model. None
                measures nothing.

        Returns:
            The report.

        Raises:
            PoolError: if the pool has no such expert, or `measure` is given inside a `record()` block.
            ConfigError: if there is no such layout.
            StorageError: if the folder holds another kind of adapter, as the pool itself.
            UnsupportedError: if `measure` is given and a site is an nn.MultiheadAttention.
        """
        layers, index = self._layers(), self.pool.index(name)
        measured = (
            None if measure is None else measure_expert(self.model, layers, self.adapter, index, measure)
        )
        component = "unet" if "UNet" in type(self.model).__name__ else "transformer"
        return write_lora(Path(path), layers, self.adapter, name, self.config, layout, component, measured)

    def import_lora(
        self, source: str | Path | Mapping[str, Tensor], name: str, *, strict: bool = False
    ) -> LoraImport:
        """Add a plain LoRA as an expert: a veteran with frozen A and B of its own ranks; its router trains.

        Taken is its part at the pool's projections, with its scale (alpha, rslora, patterns) folded into B.

        Args:
            source: A PEFT folder; a safetensors file of diffusers or kohya, or a folder with diffusers'; or
                weights by name, as a pipeline's own `lora_state_dict` gives them: `FluxPipeline.
                lora_state_dict(file)` for a FLUX model, `StableDiffusionPipeline` for its UNet.
            name: Name of the expert.
            strict: Whether to refuse a LoRA that adapts anything else, instead of reporting it.

        Returns:
            The report: ranks, what was dropped, which projections the LoRA does not adapt.

        Raises:
            StorageError: if it is no plain LoRA or does not fit; nothing was changed then.
            ConfigError: if the name cannot be used or is taken.
        """
        layers = self._layers()
        pairs, report = fit_lora(read_foreign(source), layers, self.adapter, name, strict)
        ranks = rank_pattern(report, layers, self.settings)
        self._note_stage_end()
        grow(layers, self.adapter, self.config, name, ranks=ranks)
        place_lora(pairs, layers, self.adapter, self.pool.index(name))
        self.config.imported = [*self.config.imported, self.experts[-1]]
        refresh_training(layers, self.adapter, self.config)
        return report
