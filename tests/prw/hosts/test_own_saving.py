"""What a host library does with a model that prw has given a pool: its own saving loses nothing."""

import pytest
import torch
from transformers import LlamaForCausalLM, ViTModel

import prw
from tests.other_rounding import aligned

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(("name", "kind"), [("llama", LlamaForCausalLM), ("vit", ViTModel)])
def test_transformers_own_saving_keeps_the_base_and_the_pool(make_host, wake, tmp_path, name, kind):
    host = make_host(name)
    host.model.eval()
    host.model.save_pretrained(tmp_path / "base")
    before = host()
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    expected = host()
    host.model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists(), "only the adapter is written"
    again = aligned(kind.from_pretrained(tmp_path / "base").eval())
    prw.load(again, tmp_path / "adapter")
    assert torch.equal(host.read(again(**host.inputs)), expected)
    again = aligned(kind.from_pretrained(tmp_path / "base").eval())
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(host.read(again(**host.inputs)), expected)
    weave.eject()
    host.model.save_pretrained(tmp_path / "ejected")
    whole = aligned(kind.from_pretrained(tmp_path / "ejected").eval())
    assert torch.equal(host.read(whole(**host.inputs)), before)


def test_diffusers_own_switching_works_after_inject(make_host, wake):
    host = make_host("flux")
    host.model.eval()
    before = host()
    wake(prw.inject(host.model, rank=4, experts=["a", "b"]))
    expected = host()
    host.model.disable_adapters()
    assert torch.equal(host(), before)
    host.model.enable_adapters()
    assert torch.equal(host(), expected)
