"""A plain LoRA is read from any file of PEFT, diffusers or kohya; damaged and foreign ones are refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

import prw
from prw.storage.lora_files import pairs_by_module
from tests.prw.storage.loras import lora_folder, lora_of, prefixed, state_of

FORMATS = {
    "diffusers": lambda n: f"transformer.{n}",
    "bare": lambda n: n,
    "peft with adapter name": lambda n: f"base_model.model.{n.replace('.weight', '.default.weight')}",
    "diffusers, older": lambda n: "unet." + n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "diffusers, oldest": lambda n: (
        n.replace(".to_", ".processor.to_").replace(".lora_A", "_lora.down").replace(".lora_B", "_lora.up")
    ),
    "kohya": lambda n: (
        "lora_unet_"
        + n.rsplit(".", 2)[0].replace(".", "_")
        + n[-len(".lora_A.weight") :].replace("lora_A", "lora_down").replace("lora_B", "lora_up")
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("place", ["file", "folder", "mapping"])
def test_every_file_format_is_read(make_plain, tmp_path, form, place):
    base = make_plain().eval()
    lora = lora_of(base, lora_alpha=3)  # without a noted alpha the scale is one
    weights = {FORMATS[form](name): weight for name, weight in state_of(lora).items()}
    name = "style.safetensors" if place == "file" else "pytorch_lora_weights.safetensors"
    save_file(weights, tmp_path / name)
    weave = prw.inject(base, rank=4)
    source = {"file": tmp_path / name, "folder": str(tmp_path), "mapping": weights}[place]
    report = weave.import_lora(source, name="style", strict=True)
    assert len(report.ranks) == 4
    hidden = torch.randn(3, 5, 8)
    assert torch.allclose(base(hidden), lora(hidden), atol=1e-6)


def test_alphas_and_metadata_of_a_file_are_heeded(make_plain, tmp_path):
    base = make_plain().eval()
    lora = lora_of(base, lora_alpha=7, alpha_pattern={"to_v": 2})
    weights = prefixed(state_of(lora))
    hidden = torch.randn(3, 5, 8)
    noted = {"transformer.r": 3, "transformer.lora_alpha": 7, "transformer.alpha_pattern": {"to_v": 2}}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(noted)}
    save_file(weights, tmp_path / "noted.safetensors", metadata=metadata)
    alphas = {
        name.replace("lora_A.weight", "alpha"): torch.tensor(2.0 if "to_v" in name else 7.0)
        for name in weights
        if "lora_A" in name
    }
    save_file({**weights, **alphas}, tmp_path / "alphas.safetensors")
    for file in ("noted", "alphas"):
        weave = prw.inject(base, rank=4)
        weave.import_lora(tmp_path / f"{file}.safetensors", name="style", strict=True)
        assert torch.allclose(base(hidden), lora(hidden), atol=1e-6)
        weave.eject()
    metadata["lora_adapter_metadata"] = json.dumps({**noted, "transformer.use_dora": True})
    save_file(weights, tmp_path / "dora.safetensors", metadata=metadata)
    weave = prw.inject(base, rank=4)
    with pytest.raises(prw.StorageError, match="use_dora"):
        weave.import_lora(tmp_path / "dora.safetensors", name="style")


def test_damaged_files_are_refused_and_change_nothing(make_plain, tmp_path):
    base = make_plain()
    weights = state_of(lora_of(base))
    weave = prw.inject(base, rank=4, experts=["a"])
    first = next(iter(weights))
    with pytest.raises(prw.StorageError, match=r"A without B, or B without A \(blocks.0.to_k\)"):
        weave.import_lora({k: v for k, v in weights.items() if k != first}, name="b")
    with pytest.raises(prw.StorageError, match="different rank"):
        weave.import_lora({**weights, first: torch.ones(2, 8)}, name="b")
    with pytest.raises(prw.StorageError, match="9 -> 8 wide"):
        weave.import_lora({**weights, first: torch.ones(3, 9)}, name="b")
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(prw.StorageError, match="cannot be read as a safetensors file"):
        weave.import_lora(tmp_path / "cut.safetensors", name="b")
    with pytest.raises(prw.ConfigError, match="already has an expert 'a'"):
        weave.import_lora(weights, name="a")
    assert weave.experts == ("a",)
    assert weave.config.expert_ranks == {}


def test_a_16_bit_lora_is_taken_without_loss():
    half = torch.randn(2, 4).bfloat16()
    lora = pairs_by_module("here", {"x.lora_A.weight": half, "x.lora_B.weight": torch.ones(3, 2).half()}, {})
    assert lora.pairs["x"].scale == 1.0
    assert torch.equal(lora.pairs["x"].down, half)


def test_an_activated_lora_is_refused(make_plain, tmp_path):
    base = make_plain()
    lora_folder(copy.deepcopy(base), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "alora_invocation_tokens": [3, 4]}))
    weave = prw.inject(base, rank=4)
    with pytest.raises(prw.StorageError, match="alora_invocation_tokens"):
        weave.import_lora(tmp_path, name="style")
    assert weave.experts == ()
