"""Saving and loading of pools in PEFT's folder layout, and single experts as plain PEFT LoRA folders."""

from prw.storage.folder import SavedPool, pool_config, read_folder, write_folder
from prw.storage.loading import load_pool, place_pool
from prw.storage.lora import LoraExpert, place_lora, read_lora, write_lora
from prw.storage.saving import save_pool
from prw.storage.state import pool_parameters, pool_state

__all__ = [
    "LoraExpert",
    "SavedPool",
    "load_pool",
    "place_lora",
    "place_pool",
    "pool_config",
    "pool_parameters",
    "pool_state",
    "read_folder",
    "read_lora",
    "save_pool",
    "write_folder",
    "write_lora",
]
