"""Saving and loading of pools in PEFT's folder layout, and single experts as plain LoRAs.

Files that are missing, damaged, foreign or do not fit raise StorageError; the model is unchanged then.
"""

from prw.storage.folder import SavedPool, pool_config, pool_parameters, read_folder, save_pool, write_folder
from prw.storage.loading import fill, load_pool, place_pool
from prw.storage.lora_export import Layout, LoraExport, export_lora
from prw.storage.lora_files import read_foreign
from prw.storage.lora_import import LoraImport, fit_lora, place_lora, rank_pattern

__all__ = [
    "Layout",
    "LoraExport",
    "LoraImport",
    "SavedPool",
    "export_lora",
    "fill",
    "fit_lora",
    "load_pool",
    "place_lora",
    "place_pool",
    "pool_config",
    "pool_parameters",
    "rank_pattern",
    "read_folder",
    "read_foreign",
    "save_pool",
    "write_folder",
]
