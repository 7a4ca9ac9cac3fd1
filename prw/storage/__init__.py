"""Saving and loading of pools in PEFT's folder layout, and single experts as plain PEFT LoRA folders."""

from prw.storage.folder import SavedPool, pool_config, read_folder, write_folder
from prw.storage.loading import load_pool, place_pool
from prw.storage.lora_export import Layout, LoraExport, write_lora
from prw.storage.lora_files import read_foreign
from prw.storage.lora_import import LoraImport, fit_lora, place_lora, rank_pattern
from prw.storage.measure import measure_expert
from prw.storage.saving import save_pool
from prw.storage.state import fill, pool_parameters, pool_state

__all__ = [
    "Layout",
    "LoraExport",
    "LoraImport",
    "SavedPool",
    "fill",
    "fit_lora",
    "load_pool",
    "measure_expert",
    "place_lora",
    "place_pool",
    "pool_config",
    "pool_parameters",
    "pool_state",
    "rank_pattern",
    "read_folder",
    "read_foreign",
    "save_pool",
    "write_folder",
    "write_lora",
]
