"""The canary in PEFT's mine: every name of PEFT that prw uses, and how each has to behave."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import diffusers
import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import nn

import prw
from prw.tuner import host_calls
from prw.tuner.config import check_peft

PACKAGE = Path(prw.__file__).parent
USED = {
    tuners_utils.BaseTuner: (
        "_cast_adapter_dtype",
        "_check_target_module_exists",
        "_create_and_replace",
        "_get_adapter_state_dict",
        "_post_injection_hook",
        "_prepare_adapter_config",
        "_remap_adapter_state_dict_for_load",
        "_remove_adapter_name_from_key",
        "_replace_module",
        "_unload_and_optionally_merge",
        "delete_adapter",
        "inject_adapter",
    ),
    tuners_utils.BaseTunerLayer: (
        "_all_available_adapter_names",
        "_freeze_non_trainable_peft_weights",
        "active_adapters",
        "delete_adapter",
        "get_base_layer",
        "set_adapter",
    ),
    PeftConfig: ("from_peft_type", "save_pretrained"),
}
"""Members of PEFT's classes that prw overrides, calls, or relies on being called."""

PARAMETERS = {
    peft.inject_adapter_in_model: ("peft_config", "model", "adapter_name"),
    peft.utils.register_peft_method: ("name", "config_cls", "model_cls"),
    tuners_utils.BaseTuner.inject_adapter: (
        "model",
        "adapter_name",
        "autocast_adapter_dtype",
        "low_cpu_mem_usage",
        "state_dict",
    ),
    tuners_utils.BaseTuner._create_and_replace: (
        "peft_config",
        "adapter_name",
        "target",
        "target_name",
        "parent",
        "current_key",
    ),
    tuners_utils.BaseTunerLayer.set_adapter: ("adapter_names", "inference_mode"),
}
"""Parameters that prw passes, or takes, by name."""


def imported_from_peft() -> set[str]:
    """Every name that a module of prw imports from PEFT."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "peft":
                found.update(f"{node.module}:{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("name", sorted(imported_from_peft()))
def test_peft_still_has(name: str) -> None:
    module, attribute = name.split(":")
    assert hasattr(importlib.import_module(module), attribute), f"PEFT {peft.__version__} has moved {name}"


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in USED.items() for name in names]
)
def test_a_class_of_peft_still_has(owner: type, name: str) -> None:
    assert hasattr(owner, name), f"PEFT {peft.__version__} has renamed {owner.__name__}.{name}"


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_a_function_of_peft_still_takes(function: Callable[..., object]) -> None:
    lacking = set(PARAMETERS[function]) - inspect.signature(function).parameters.keys()
    assert not lacking, f"PEFT {peft.__version__} has renamed parameters of {function.__qualname__}"


@pytest.mark.parametrize("version", ["0.20.0", "0.19.1", "0.5.0.dev0"])
def test_an_old_peft_is_refused(monkeypatch, version) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(prw.UnsupportedError, match=rf"0\.21 or newer.*{version}.*pip install --upgrade peft"):
        check_peft()


@pytest.mark.parametrize("version", ["0.21.0", "0.21.2", "0.22.0.dev0", "1.0.0"])
def test_a_new_peft_is_taken(monkeypatch, version) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    check_peft()


OLD = """
import peft, peft.tuners.tuners_utils as inside
peft.__version__ = "0.18.0"
del inside._get_in_out_features
try:
    import prw
except RuntimeError as error:
    print(type(error).__name__, error)
"""


def test_importing_prw_beside_an_old_peft_says_so_before_a_newer_name_is_missed() -> None:
    ran = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("UnsupportedError prw needs peft 0.21 or newer")


def test_the_enum_takes_a_member_that_is_found_every_way() -> None:
    why = "PeftType is no plain str enum any more: prw.tuner.config adds its member by hand"
    assert PeftType("PRW") is PeftType.PRW is PeftType["PRW"], why
    assert PeftType.PRW in list(PeftType), why
    assert isinstance(PeftType.PRW, str), why
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.PRW].prefix == "prw_", "register_peft_method keeps the prefix"


def test_peft_reads_frozen_names_when_it_switches_adapters() -> None:
    class Layer(nn.Module, BaseTunerLayer):
        adapter_layer_names = ("prw_old", "prw_new")

    layer = Layer()
    for name in layer.adapter_layer_names:
        setattr(layer, name, nn.ModuleDict({"a": nn.Linear(2, 2)}))
    layer.frozen_peft_weight_names = {"a": ("prw_old",)}
    layer.set_adapter("a")
    why = "PEFT no longer heeds frozen_peft_weight_names: set_adapter would set veterans training"
    assert not any(p.requires_grad for p in layer.prw_old.parameters()), why
    assert all(p.requires_grad for p in layer.prw_new.parameters()), why


def test_peft_strips_and_puts_back_the_adapters_name(make_plain) -> None:
    wrapped = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"]), adapter_name="x")
    names = set(peft.get_peft_model_state_dict(wrapped, adapter_name="x"))
    why = "PEFT names weights in another way: prw.storage writes base_model.model.<path>.prw_A0.weight"
    assert "base_model.model.blocks.0.to_k.prw_A0.weight" in names, why
    assert not any(".x." in name for name in names), why


def test_peft_walks_paths_and_skips_the_insides_of_adapters(make_plain) -> None:
    model = make_plain()
    prw.inject(model, rank=2, experts=["a"], adapter="one")
    second = prw.inject(model, rank=2, experts=["b"], adapter="two")
    why = "PEFT looks for targets inside adapters: a second pool would go onto the first one's experts"
    assert {path for site in second.sites for path in site.modules} == {
        f"blocks.{block}.{name}" for block in range(2) for name in ("to_k", "to_v")
    }, why


def test_peft_makes_our_configuration_of_plain_values() -> None:
    config = PeftConfig.from_peft_type(peft_type="PRW", rank=3, experts=["a"])
    assert isinstance(config, prw.PrwConfig), "from_peft_type no longer looks into PEFT's own mapping"
    assert config.rank == 3
    assert LoraConfig(r=3).to_dict()["r"] == 3, "to_dict no longer gives the fields"


def test_widths_are_read_off_a_linear() -> None:
    why = "_get_in_out_features no longer gives (in, out)"
    assert tuple(tuners_utils._get_in_out_features(nn.Linear(3, 5))) == (3, 5), why


def test_low_memory_loading_makes_our_weights_on_meta(make_plain) -> None:
    wrapped = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"]), low_cpu_mem_usage=True)
    experts = [p for name, p in wrapped.named_parameters() if ".prw_" in name]
    assert all(p.device == torch.device("meta") for p in experts), "init_empty_weights works otherwise now"


RECOGNISED = ("FUSING", "SAVING", "MEASURING", "SCALING", "NAMING", "MOVING", "SAVING_ADAPTER")
"""Names in `host_calls` of the functions of diffusers that prw recognises."""

ASKING = {
    "fuse_projections": [
        ("diffusers.models.attention.AttentionModuleMixin.fuse_projections", "weight"),
        ("diffusers.models.attention_processor.Attention.fuse_projections", "weight"),
    ],
    "fuse_qkv_projections": [
        ("diffusers.models.attention.AttentionMixin.fuse_qkv_projections", "fuse_projections"),
        ("diffusers.UNet2DConditionModel.fuse_qkv_projections", "fuse_projections"),
    ],
    "save_pretrained": [
        ("diffusers.ModelMixin.save_pretrained", "state_dict"),
        ("diffusers.DiffusionPipeline.save_pretrained", "save_method"),
    ],
    "_maybe_expand_lora_state_dict": [
        ("diffusers.loaders.FluxLoraLoaderMixin._maybe_expand_lora_state_dict", "state_dict"),
    ],
    "_fuse_lora_apply": [
        ("diffusers.loaders.peft.PeftAdapterMixin._fuse_lora_apply", "scale_layer"),
        ("diffusers.loaders.peft.PeftAdapterMixin._fuse_lora_apply", "merge"),
    ],
    "fuse_text_encoder_lora": [
        ("diffusers.loaders.lora_base.fuse_text_encoder_lora", "scale_layer"),
        ("diffusers.loaders.lora_base.fuse_text_encoder_lora", "merge"),
    ],
    "get_adapter_name": [
        ("diffusers.utils.peft_utils.get_adapter_name", "r"),
        ("diffusers.utils.peft_utils.get_adapter_name", "model"),
    ],
    "set_lora_device": [
        ("diffusers.loaders.lora_base.LoraBaseMixin.set_lora_device", "lora_A"),
        ("diffusers.loaders.lora_base.LoraBaseMixin.set_lora_device", "adapter_names"),
    ],
    "save_lora_adapter": [
        ("diffusers.loaders.peft.PeftAdapterMixin.save_lora_adapter", "get_peft_model_state_dict"),
        ("diffusers.loaders.peft.PeftAdapterMixin.save_lora_adapter", "safe_serialization"),
    ],
}
"""Functions of diffusers that prw recognises by name, where they are, and a name that each must use."""


def names_used(function: object) -> set[str]:
    """Names and attributes in the code of a function, its docstring left out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_function_that_is_recognised_by_its_name_is_looked_at() -> None:
    assert set(ASKING) == {name for kind in RECOGNISED for name in getattr(host_calls, kind)}
    kinds = {kind for kind, value in vars(host_calls).items() if kind.isupper() and isinstance(value, tuple)}
    assert kinds == set(RECOGNISED)


@pytest.mark.parametrize(("where", "used"), [pair for pairs in ASKING.values() for pair in pairs])
def test_diffusers_still_asks_from_the_function_that_is_recognised(where: str, used: str) -> None:
    why = f"diffusers {diffusers.__version__} has moved {where}: correct prw/tuner/host_calls.py"
    function = inspect.unwrap(pkgutil.resolve_name(where))
    assert function.__module__.startswith("diffusers"), why
    assert function.__code__.co_name == where.rpartition(".")[2], why
    assert used in names_used(function), f"{why}; it no longer uses {used}"


def test_the_look_into_a_function_notices_what_it_no_longer_uses() -> None:
    def save_pretrained(model: nn.Module) -> list[nn.Module]:
        """Leave state_dict out."""
        return list(model.children())

    assert "state_dict" not in names_used(save_pretrained)
    assert {"model", "children"} <= names_used(save_pretrained)
