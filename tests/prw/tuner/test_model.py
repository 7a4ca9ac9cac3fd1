"""The canary: PRW is a PEFT method that PEFT, transformers and diffusers can make, save, load and drop."""

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import PeftType
from peft.utils.constants import MIN_TARGET_MODULES_FOR_OPTIMIZATION
from torch import nn
from transformers import LlamaForCausalLM

import prw

# transformers and peft disagree about the name of this property; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIG = {"rank": 4, "experts": ["a", "b"]}


@pytest.fixture
def llama(make_host):
    host = make_host("llama")
    host.model.eval()
    return host


def awake(model, wake):
    weave = prw.Weave(model)
    wake(weave)
    return weave


def test_the_enum_has_a_true_member():
    member = PeftType("PRW")
    assert member is PeftType.PRW is PeftType["PRW"]
    assert member in list(PeftType)
    assert (member.value, member.name, str(member.value).lower()) == ("PRW", "PRW", "prw")


IMPORT_FIRST = """
import sys, peft
try:
    peft.PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    print(error)
import prw
print(type(peft.PeftConfig.from_pretrained(sys.argv[1])).__name__)
"""


def test_a_folder_needs_the_import_and_no_more(llama, tmp_path):
    prw.inject(llama.model, **CONFIG).save_pretrained(tmp_path)
    command = [sys.executable, "-c", IMPORT_FIRST, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["'PRW'", "PrwConfig"]


def test_get_peft_model_saves_and_loads_under_any_name(llama, make_host, wake, tmp_path):
    base = {name: weight.clone() for name, weight in llama.model.state_dict().items()}
    before = llama()
    wrapped = get_peft_model(llama.model, prw.PrwConfig(**CONFIG))
    assert torch.equal(llama.read(wrapped(**llama.inputs)), before)
    weave = awake(wrapped, wake)
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == {
        n for n, p in wrapped.named_parameters() if any(p is q for q in weave.trainable_parameters())
    }
    expected = llama.read(wrapped(**llama.inputs))
    wrapped.save_pretrained(tmp_path)
    assert isinstance(PeftConfig.from_pretrained(tmp_path), prw.PrwConfig)
    for name in ("default", "other"):
        other = make_host("llama")
        other.model.load_state_dict(base)
        loaded = PeftModel.from_pretrained(other.model, tmp_path, adapter_name=name).eval()
        assert torch.equal(llama.read(loaded(**llama.inputs)), expected)
        assert prw.Weave(loaded, name).experts == ("a", "b")
        assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(prw.UnsupportedError, match="unload"):
        weave.eject()
    assert torch.equal(llama.read(wrapped.unload()(**llama.inputs)), before)


def test_what_prw_saves_peft_loads_and_the_other_way_round(llama, make_host, wake, tmp_path):
    base = {name: weight.clone() for name, weight in llama.model.state_dict().items()}
    weave = prw.inject(llama.model, **CONFIG)
    wake(weave)
    expected = llama()
    weave.save_pretrained(tmp_path / "ours")
    other = make_host("llama")
    other.model.load_state_dict(base)
    wrapped = PeftModel.from_pretrained(other.model, tmp_path / "ours").eval()
    assert torch.equal(llama.read(wrapped(**llama.inputs)), expected)
    wrapped.save_pretrained(tmp_path / "theirs")
    plain = wrapped.unload()
    prw.load(plain, tmp_path / "theirs")
    assert torch.equal(llama.read(plain(**llama.inputs)), expected)


def test_switching_disabling_and_deleting_keep_veterans_frozen(llama, wake):
    before = llama()
    wrapped = get_peft_model(llama.model, prw.PrwConfig(**CONFIG))
    awake(wrapped, wake)
    training = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    weave_output = llama.read(wrapped(**llama.inputs))
    wrapped.add_adapter("second", prw.PrwConfig(rank=2, experts=["x"]))
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == training
    wrapped.set_adapter("second")
    assert torch.equal(llama.read(wrapped(**llama.inputs)), before)
    wrapped.set_adapter("default")
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == training
    assert torch.equal(llama.read(wrapped(**llama.inputs)), weave_output)
    with wrapped.disable_adapter():
        assert torch.equal(llama.read(wrapped(**llama.inputs)), before)
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == training
    wrapped.delete_adapter("second")
    assert torch.equal(llama.read(wrapped(**llama.inputs)), weave_output)


def test_transformers_adds_saves_loads_and_deletes(llama, wake, tmp_path):
    llama.model.save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    before = llama.read(model(**llama.inputs))
    model.add_adapter(prw.PrwConfig(**CONFIG))
    awake(model, wake)
    expected = llama.read(model(**llama.inputs))
    model.save_pretrained(tmp_path / "adapter")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(llama.read(again(**llama.inputs)), expected)
    again.delete_adapter("default")
    assert torch.equal(llama.read(again(**llama.inputs)), before)


def test_diffusers_adds_switches_and_deletes(make_host, wake):
    host = make_host("flux")
    host.model.eval()
    before = host()
    host.model.add_adapter(prw.PrwConfig(**CONFIG), adapter_name="default")
    awake(host.model, wake)
    expected = host()
    host.model.disable_adapters()
    assert torch.equal(host(), before)
    host.model.enable_adapters()
    assert torch.equal(host(), expected)
    host.model.set_adapters("default", weights=0.0)
    assert torch.equal(host(), before)
    host.model.set_adapters("default", weights=1.0)
    assert torch.equal(host(), expected)
    host.model.delete_adapters("default")
    assert torch.equal(host(), before)


@pytest.mark.parametrize("first", ["lora", "prw"])
def test_a_lora_on_the_same_projections_lives_beside_the_pool(make_plain, wake, first):
    model = make_plain().eval()
    hidden = torch.randn(2, 5, 8)
    base = model(hidden)
    lora = LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)

    def add_lora():
        with pytest.warns(UserWarning, match="Already found") if first == "prw" else torch.no_grad():
            inject_adapter_in_model(lora, model, "style")

    if first == "lora":
        add_lora()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    if first == "prw":
        add_lora()
    with weave.disabled():
        with_lora = model(hidden)
    assert not torch.equal(with_lora, base)
    wake(weave)
    assert not torch.equal(model(hidden), with_lora)
    key = model.blocks[0].to_k
    with weave.record() as routing:
        off = prw.project(key, hidden, routed=False)
    assert not routing.decisions
    with weave.disabled():
        assert torch.equal(prw.project(key, hidden), off)
    assert not torch.equal(prw.project(key, hidden, routed=True), off)
    weave.eject()
    assert torch.equal(model(hidden), with_lora)


def test_project_calls_a_plain_linear_too(make_plain):
    key = make_plain().blocks[0].to_k
    hidden = torch.randn(2, 5, 8)
    assert torch.equal(prw.project(key, hidden, routed=True), key(hidden))
    assert torch.equal(prw.project(key, hidden, routed=False), key(hidden))


def test_a_batch_whose_rows_ask_for_adapters_of_their_own_is_refused(llama, wake):
    wrapped = get_peft_model(llama.model, prw.PrwConfig(**CONFIG))
    wrapped.add_adapter("second", prw.PrwConfig(rank=2, experts=["x"]))
    awake(wrapped.eval(), wake)
    before = llama.read(wrapped(**llama.inputs))
    for names in (["default", "second"], ["default", "__base__"], ["default", "default"]):
        with pytest.raises(prw.UnsupportedError, match=r"adapter_names=\[\.\.\.\].*set_adapter"):
            wrapped(**llama.inputs, adapter_names=names)
        with pytest.raises(prw.UnsupportedError, match="adapter_names"):
            wrapped.generate(**llama.inputs, adapter_names=names, max_new_tokens=1)
    assert torch.equal(llama.read(wrapped(**llama.inputs, adapter_names=None)), before)


def test_what_cannot_be_done_is_refused(llama):
    wrapped = get_peft_model(llama.model, prw.PrwConfig(**CONFIG))
    with pytest.raises(prw.UnsupportedError, match="cannot be merged"):
        wrapped.merge_and_unload()
    with pytest.raises(prw.UnsupportedError, match="get_peft_model"):
        prw.inject(wrapped)
    with pytest.raises(prw.ConfigError, match="bias='all'"):
        prw.PrwConfig(bias="all")
    for experts, match in ((["zero"], "zero"), (["a", "a"], "already has"), ([""], "non-empty")):
        with pytest.raises(prw.ConfigError, match=match):
            prw.PrwConfig(experts=experts)


BLOCKS = MIN_TARGET_MODULES_FOR_OPTIMIZATION // 2 + 1


class WithHead(nn.Module):
    """A deep stack, and beside it an attention that is not meant, whose projections have the same names."""

    def __init__(self, stack, other):
        super().__init__()
        self.stack, self.other = stack, other

    def forward(self, hidden):
        return self.other(self.stack(hidden))


@pytest.fixture
def make_deep(make_plain):
    def make():
        torch.manual_seed(11)
        return WithHead(make_plain(blocks=BLOCKS), make_plain(blocks=2)).eval()

    return make


def paths(weave):
    return [module for site in weave.sites for module in site.modules]


@pytest.mark.parametrize("target", ["kv", r"stack\.blocks\.\d+\.to_[kv]"])
def test_exactly_the_targets_get_experts_and_come_back_from_a_folder(make_deep, wake, tmp_path, target):
    model, hidden = make_deep(), torch.randn(2, 5, 8)
    wanted = [
        name
        for name, _ in model.named_modules()
        if name.endswith((".to_k", ".to_v")) and (target == "kv" or name.startswith("stack."))
    ]
    assert len(wanted) >= MIN_TARGET_MODULES_FOR_OPTIMIZATION
    before = model(hidden)
    weave = prw.inject(model, target=target, rank=2, experts=["a", "b"])
    assert paths(weave) == wanted
    assert torch.equal(model(hidden), before)
    wake(weave)
    expected = model(hidden)
    assert not torch.equal(expected, before)
    weave.save_pretrained(tmp_path)
    for load in (prw.load, lambda base, path: prw.Weave(PeftModel.from_pretrained(base, path))):
        other = make_deep()
        again = load(other, tmp_path)
        other.eval()
        assert [path.removeprefix("base_model.model.") for path in paths(again)] == wanted
        assert torch.equal(other(hidden), expected)


def test_peft_saves_what_prw_loads(make_deep, wake, tmp_path):
    model, hidden = make_deep(), torch.randn(2, 5, 8)
    wrapped = get_peft_model(model, prw.PrwConfig(rank=2, experts=["a"])).eval()
    wake(prw.Weave(wrapped))
    expected = wrapped(hidden)
    wrapped.save_pretrained(tmp_path)
    other = make_deep()
    prw.load(other, tmp_path)
    assert torch.equal(other(hidden), expected)
