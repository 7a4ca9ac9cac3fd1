"""Looks at PEFT before prw builds on it, so that a PEFT that is too old or has moved is told in a sentence.

PEFT has no door for methods from outside, so PRW uses names that PEFT calls its own business. They are listed
here, each with what prw needs it for; `tests/prw/tuner/test_canary.py` looks at how they behave.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import peft

from prw.errors import UnsupportedError

OLDEST = (0, 21)
TESTED = "0.21"

NEEDED: dict[str, str] = {
    "peft.LoraConfig": "writes an exported expert's configuration",
    "peft.PeftConfig": "is what a method's configuration derives from",
    "peft.PeftConfig.from_peft_type": "makes a configuration of what a folder says",
    "peft.PeftConfig.save_pretrained": "is where PEFT and transformers save, and where the card is written",
    "peft.PeftModel": "tells a wrapped model from a plain one",
    "peft.inject_adapter_in_model": "puts a pool into a model in place",
    "peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING": "says whether PRW is registered already",
    "peft.tuners.tuners_utils.BaseTuner": "walks the model and replaces projections",
    "peft.tuners.tuners_utils.BaseTuner._cast_adapter_dtype": "asks for the experts' dtype",
    "peft.tuners.tuners_utils.BaseTuner._check_target_module_exists": "asks whether a path gets experts",
    "peft.tuners.tuners_utils.BaseTuner._create_and_replace": "makes the layer of one projection",
    "peft.tuners.tuners_utils.BaseTuner._get_adapter_state_dict": "asks for a pool's weights to save",
    "peft.tuners.tuners_utils.BaseTuner._remap_adapter_state_dict_for_load": "asks where saved weights go",
    "peft.tuners.tuners_utils.BaseTuner._remove_adapter_name_from_key": "names a saved weight",
    "peft.tuners.tuners_utils.BaseTuner._post_injection_hook": "is called when all layers are made",
    "peft.tuners.tuners_utils.BaseTuner._prepare_adapter_config": "fills in a configuration",
    "peft.tuners.tuners_utils.BaseTuner._prepare_model": "is called before the model is walked",
    "peft.tuners.tuners_utils.BaseTuner._replace_module": "swaps a projection for its layer",
    "peft.tuners.tuners_utils.BaseTuner._unload_and_optionally_merge": "takes all layers out",
    "peft.tuners.tuners_utils.BaseTunerLayer": "switches, freezes and deletes a layer's adapters",
    "peft.tuners.tuners_utils.BaseTuner.inject_adapter": "injects, with the configuration noted under a name",
    "peft.tuners.tuners_utils.BaseTunerLayer._all_available_adapter_names": "says which names are taken",
    "peft.tuners.tuners_utils.BaseTunerLayer._freeze_non_trainable_peft_weights": "keeps veterans frozen",
    "peft.tuners.tuners_utils.BaseTunerLayer.active_adapters": "names the adapters that act",
    "peft.tuners.tuners_utils.BaseTunerLayer.delete_adapter": "takes an adapter out of a layer",
    "peft.tuners.tuners_utils.BaseTunerLayer.get_base_layer": "finds the projection inside other adapters",
    "peft.tuners.tuners_utils.BaseTunerLayer.set_adapter": "switches adapters and their training",
    "peft.tuners.tuners_utils._ExcludedModule": "marks a path that exclude_modules leaves out",
    "peft.tuners.tuners_utils._maybe_include_all_linear_layers": "lists the layers of all-linear",
    "peft.tuners.tuners_utils._get_in_out_features": "reads a projection's widths, quantised or not",
    "peft.tuners.tuners_utils.check_target_module_exists": "matches exclude_modules and layers_to_transform",
    "peft.utils.CONFIG_NAME": "names a folder's configuration",
    "peft.utils.PeftType": "lists the methods",
    "peft.utils.SAFETENSORS_WEIGHTS_NAME": "names a folder's weights",
    "peft.utils.other.AuxiliaryTrainingWrapper": "holds modules_to_save",
    "peft.utils.register_peft_method": "makes PEFT know PRW",
}
"""Every name of PEFT that prw uses, and what for."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "peft.inject_adapter_in_model": ("peft_config", "model", "adapter_name"),
    "peft.utils.register_peft_method": ("name", "config_cls", "model_cls"),
    "peft.tuners.tuners_utils.BaseTuner.inject_adapter": (
        "model",
        "adapter_name",
        "autocast_adapter_dtype",
        "low_cpu_mem_usage",
        "state_dict",
    ),
    "peft.tuners.tuners_utils.BaseTuner._create_and_replace": (
        "peft_config",
        "adapter_name",
        "target",
        "target_name",
        "parent",
        "current_key",
    ),
    "peft.tuners.tuners_utils.BaseTunerLayer.set_adapter": ("adapter_names", "inference_mode"),
}
"""Parameters that prw passes, or takes, by name."""


def check_peft() -> None:
    """Make sure that this PEFT can carry PRW.

    Raises:
        UnsupportedError: if it is too old, or a name that prw needs is gone or takes other parameters; lists
            each with what it is for.
    """
    numbers = re.findall(r"\d+", peft.__version__)
    if tuple(int(number) for number in numbers[:2]) < OLDEST:
        raise UnsupportedError(
            f"prw needs peft 0.21 or newer, which asks a method how its weights are saved; this is peft "
            f"{peft.__version__}. Run: pip install --upgrade peft"
        )
    moved = [line for line in (what_moved(name) for name in NEEDED) if line]
    if moved:
        raise UnsupportedError(
            f"prw cannot work with peft {peft.__version__}, which has changed inside:\n  "
            + "\n  ".join(moved)
            + f"\nprw was tested with peft {TESTED}. Install that, or a newer prw."
        )


def what_moved(name: str) -> str:
    """Say what is wrong with a name of PEFT; empty if nothing is."""
    found = find(name)
    if found is None:
        return f"{name} is gone; it {NEEDED[name]}"
    wanted = PARAMETERS.get(name, ())
    there = inspect.signature(found).parameters if wanted else {}
    lacking = [parameter for parameter in wanted if parameter not in there]
    return f"{name} no longer takes {', '.join(lacking)}; it {NEEDED[name]}" if lacking else ""


def find(name: str) -> Any:
    """Follow a dotted name through modules and classes; None if it leads nowhere."""
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    path = first
    for part in rest:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return None
        found = getattr(found, part, None)
        if found is None:
            return None
    return found


check_peft()
