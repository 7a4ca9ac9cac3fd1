"""One expert as a plain LoRA that stock PEFT reads, and a stock LoRA as an expert."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import prw

SETTINGS = {"rank": 4, "alpha": 6.0}


def lora_folder(model, path, **options):
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["to_k", "to_v"], **options})
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(path)
    return wrapped.eval()


def test_a_pool_of_one_equals_peft_lora(make_plain, tmp_path):
    base = make_plain().eval()
    lora = lora_folder(copy.deepcopy(base), tmp_path / "lora")
    weave = prw.inject(base, **SETTINGS)
    weave.import_lora(tmp_path / "lora", name="style")
    hidden = torch.randn(3, 5, 8)
    assert torch.allclose(base(hidden), lora(hidden), atol=1e-6)
    assert not torch.allclose(base(hidden), lora.base_model.model.blocks[0](hidden), atol=1e-3)
    weave.export_lora("style", tmp_path / "again")
    weave.eject()
    stock = PeftModel.from_pretrained(base, tmp_path / "again").eval()
    assert torch.allclose(stock(hidden), lora(hidden), atol=1e-6)


def test_gradients_of_a_pool_of_one_equal_those_of_peft_lora(make_plain, tmp_path):
    base = make_plain().eval()
    lora = lora_folder(copy.deepcopy(base), tmp_path / "lora")
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    hidden = torch.randn(3, 5, 8)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            ours = (
                name.removeprefix("base_model.model.").replace("lora_A", "prw_A0").replace("lora_B", "prw_B0")
            )
            with torch.no_grad():
                base.get_parameter(ours).copy_(parameter)
            parameter.requires_grad_()
    lora(hidden).square().sum().backward()
    base(hidden).square().sum().backward()
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            ours = (
                name.removeprefix("base_model.model.").replace("lora_A", "prw_A0").replace("lora_B", "prw_B0")
            )
            assert torch.allclose(base.get_parameter(ours).grad, parameter.grad, atol=1e-4)
    assert len(weave.sites) == 2


def test_an_imported_expert_keeps_its_weights_and_trains_its_router(make_plain, tmp_path):
    base = make_plain().eval()
    lora_folder(copy.deepcopy(base), tmp_path / "lora", r=2, lora_alpha=3, target_modules=["to_v"])
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    weave.import_lora(tmp_path / "lora", name="style")
    training = {n for n, p in base.named_parameters() if p.requires_grad}
    assert training == {
        f"blocks.{b}.to_k.prw_{part}1.default.weight" for b in (0, 1) for part in ("gate", "noise")
    }
    value, key = base.blocks[0].to_v, base.blocks[0].to_k
    assert value.prw_B1["default"].weight.shape == (8, 2)
    assert value.prw_B1["default"].weight.any()
    assert not key.prw_B1["default"].weight.any()
    weave.save_pretrained(tmp_path / "pool")
    weave.eject()
    assert len(prw.load(base, tmp_path / "pool").trainable_parameters()) == 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"target_modules": ["to_q"]},
            "adapts none of the pool's projections .*to_k.*, only 2 others .*to_q",
        ),
        ({"use_dora": True}, "not a plain LoRA.*use_dora"),
        ({"bias": "lora_only"}, "not a plain LoRA.*bias"),
        (
            {"init_lora_weights": "pissa"},
            "'pissa'.*path_initial_model_for_weight_conversion",
        ),
        ({"init_lora_weights": "pissa_niter_2"}, "init_lora_weights='pissa_niter_2'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_a_lora_that_is_no_expert_is_refused(make_plain, tmp_path, options, match):
    base = make_plain()
    lora_folder(copy.deepcopy(base), tmp_path / "lora", **options)
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    with pytest.raises(prw.StorageError, match=match):
        weave.import_lora(tmp_path / "lora", name="style")
    assert weave.experts == ("a",)


def test_an_activated_lora_is_refused(make_plain, tmp_path):
    base = make_plain()
    lora_folder(copy.deepcopy(base), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "alora_invocation_tokens": [3, 4]}))
    weave = prw.inject(base, **SETTINGS)
    with pytest.raises(prw.StorageError, match="alora_invocation_tokens"):
        weave.import_lora(tmp_path, name="style")
    assert weave.experts == ()


def test_a_pool_or_another_models_lora_is_refused(make_plain, tmp_path):
    base = make_plain()
    weave = prw.inject(base, experts=["a"], **SETTINGS)
    weave.save_pretrained(tmp_path / "pool")
    with pytest.raises(prw.StorageError, match="is a PRW adapter"):
        weave.import_lora(tmp_path / "pool", name="style")
    lora_folder(make_plain(width=6), tmp_path / "narrow")
    with pytest.raises(prw.StorageError, match="6 -> 6 wide, the projection is 8 -> 8"):
        weave.import_lora(tmp_path / "narrow", name="style")
    with pytest.raises(prw.PoolError, match="no expert 'z'"):
        weave.export_lora("z", tmp_path / "z")
    assert not (tmp_path / "z").exists()
