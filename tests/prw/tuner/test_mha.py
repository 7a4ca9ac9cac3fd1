"""Torch's own attention: experts reach it in every mode, and its fused calls never pass over them."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from torch import nn

import prw

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


class Attending(nn.Module):
    """An attention with whatever options, in a model."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, query, memory, **options):
        return self.attention(query, memory, memory, **options)[0]


def encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, **options).eval()


def padded(length=3):
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, length:] = True
    return padding


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("padding", [None, padded()])
def test_an_encoder_gives_its_own_output_until_an_expert_has_an_effect(wake, grad, padding):
    """To a rounding with experts: torch's fused calls, which the base takes, would pass over them."""
    model, hidden = encoder().requires_grad_(False), torch.randn(2, 5, 8)
    seen = slice(None) if padding is None else ~padding  # the fused call puts zeros at pads
    with torch.set_grad_enabled(grad):
        before = model(hidden, src_key_padding_mask=padding)
        weave = prw.inject(model, rank=2)
        weave.add_expert("a")
        assert torch.allclose(model(hidden, src_key_padding_mask=padding)[seen], before[seen], atol=1e-6)
        wake(weave)
        after = model(hidden, src_key_padding_mask=padding)
        assert not torch.allclose(after[:, :3], before[:, :3], atol=1e-3)
        with weave.disabled():
            assert torch.equal(model(hidden, src_key_padding_mask=padding), before)


@pytest.mark.parametrize("grad", [True, False])
def test_an_encoder_that_torch_does_not_fuse_keeps_its_bits(grad):
    layer = nn.TransformerEncoderLayer(9, 3, 12, batch_first=True, dropout=0.0)  # an odd number of heads
    model, hidden = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 9)
    model.eval().requires_grad_(False)
    with torch.set_grad_enabled(grad):
        before = model(hidden, src_key_padding_mask=padded())
        prw.inject(model, rank=2, experts=["a"])
        assert torch.equal(model(hidden, src_key_padding_mask=padded()), before)


@pytest.mark.parametrize("padding", [None, padded()])
def test_the_fused_calls_never_pass_over_the_experts(wake, padding):
    model, hidden = encoder(), torch.randn(2, 5, 8)
    seen = slice(None) if padding is None else ~padding
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    wake(weave)
    with torch.no_grad():
        evaluated = model(hidden, src_key_padding_mask=padding)
        with weave.disabled():
            base = model(hidden, src_key_padding_mask=padding)
    assert not torch.allclose(evaluated[seen], base[seen], atol=1e-3)
    model.requires_grad_(True)  # torch takes no fused call where gradients are wanted
    assert torch.allclose(model(hidden, src_key_padding_mask=padding)[seen], evaluated[seen], atol=1e-6)


def test_a_nested_batch_that_would_pass_over_experts_is_refused_with_the_way_out(wake):
    model, hidden = encoder(), torch.randn(2, 5, 8)
    wake(prw.inject(model, rank=2, experts=["a"], layers=1))
    with torch.no_grad():
        with pytest.raises(prw.RoutingError, match="use_nested_tensor = False"):
            model(hidden, src_key_padding_mask=padded())
        model.use_nested_tensor = False
        assert model(hidden, src_key_padding_mask=padded()).shape == hidden.shape


def test_compile_takes_an_encoder_layer_whole(wake):
    layer, hidden = encoder().layers[0], torch.randn(2, 5, 8)
    weave = prw.inject(layer, rank=2, experts=["a", "b"])
    wake(weave)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(hidden), layer(hidden), atol=1e-6)
    compiled(hidden).sum().backward()
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())


def test_copies_and_pickles_of_an_attention_have_experts_of_their_own(wake):
    model, hidden = encoder(), torch.randn(2, 5, 8)
    wake(prw.inject(model, rank=2, experts=["a"]))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(hidden), model(hidden))
        prw.Weave(twin).eject()
        assert not torch.equal(twin(hidden), model(hidden))


def test_inference_mode_gives_what_no_grad_gives(wake):
    model, hidden = encoder(), torch.randn(2, 5, 8)
    wake(prw.inject(model, rank=2, experts=["a"]))
    with torch.no_grad():
        expected = model(hidden)
    with torch.inference_mode():
        assert torch.allclose(model(hidden), expected, atol=1e-6)


def test_a_recording_sees_every_layer_of_an_encoder_that_could_be_fused():
    model, hidden = encoder(), torch.randn(2, 5, 8)
    weave = prw.inject(model, rank=2, experts=["a"])
    with torch.no_grad(), weave.record() as routing:
        model(hidden)
    assert list(routing.decisions) == ["layers.0.self_attn", "layers.1.self_attn"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 6, "vdim": 6},
    ],
    ids=str,
)
def test_options_of_the_attention_are_kept(wake, options):
    model = Attending(**options).eval()
    memory = torch.randn(5, 2, options.get("kdim", 8))
    query = torch.randn(3, 2, 8)
    if options.get("batch_first"):
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 2:] = True
    model.requires_grad_(False)
    before = model(query, memory, attn_mask=mask)
    weave = prw.inject(model, rank=2, experts=["a"])
    assert torch.equal(model(query, memory, attn_mask=mask), before)
    wake(weave)
    after = model(query, memory, attn_mask=mask)
    assert not torch.allclose(after, before, atol=1e-4)
    alone = model(query[:, 0], memory[:, 0]) if not options.get("batch_first") else model(query[0], memory[0])
    both = model(query, memory)
    assert torch.allclose(alone, both[0] if options.get("batch_first") else both[:, 0], atol=1e-5)


def test_experts_equal_a_change_of_the_weights(wake):
    model, query, memory = Attending(batch_first=True).eval(), torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    weave = prw.inject(model, rank=2, alpha=2, gate="unit", experts=["a"])
    wake(weave)
    output = model(query, memory)
    layer = model.attention
    changed = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        changed.in_proj_weight[8:16] += layer.prw_Bk0["default"].weight @ layer.prw_Ak0["default"].weight
        changed.in_proj_weight[16:] += layer.prw_Bv0["default"].weight @ layer.prw_Av0["default"].weight
    assert torch.allclose(changed(query, memory, memory)[0], output, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_an_expert_of_a_fused_projection_is_a_plain_lora_of_twice_the_rank(wake, tmp_path):
    model = nn.Module()
    model.qkv = nn.Linear(8, 24)
    base, hidden = copy.deepcopy(model), torch.randn(3, 8)
    weave = prw.inject(model, rank=2, gate="unit", experts=["a"])
    wake(weave)
    weave.export_lora("a", tmp_path / "lora")
    stock = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora")
    assert stock.peft_config["default"].r == 4
    lora = stock.base_model.model.qkv
    assert torch.allclose(lora(hidden), model.qkv(hidden), atol=1e-5)
    assert torch.equal(lora(hidden)[:, :8], base.qkv(hidden)[:, :8])
    again = prw.inject(base, rank=2, gate="unit")
    again.import_lora(tmp_path / "lora", name="a")
    assert torch.allclose(base.qkv(hidden), model.qkv(hidden), atol=1e-5)
    small = prw.inject(nn.ModuleDict({"qkv": nn.Linear(8, 24)}), rank=1)
    assert small.import_lora(tmp_path / "lora", name="a").ranks == {"qkv": 2}


def test_what_a_lora_does_to_queries_is_reported_or_refused(tmp_path):
    model = nn.ModuleDict({"qkv": nn.Linear(8, 24)})
    stock = copy.deepcopy(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False), stock)
    wrapped = PeftModel(
        copy.deepcopy(model), LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path)
    weave = prw.inject(model, rank=2, gate="unit")
    dropped = "qkv \\(8 rows that are neither keys nor values\\)"
    with pytest.raises(prw.StorageError, match=dropped):
        weave.import_lora(tmp_path, name="a", strict=True)
    assert weave.experts == ()
    report = weave.import_lora(tmp_path, name="a")
    assert report.dropped == ("qkv (8 rows that are neither keys nor values)",)
    hidden, lora = torch.randn(3, 8), wrapped.base_model.model.qkv
    assert torch.allclose(model.qkv(hidden)[:, 8:], lora(hidden)[:, 8:], atol=1e-5)
    assert torch.equal(model.qkv(hidden)[:, :8], lora.base_layer(hidden)[:, :8])


def test_what_cannot_carry_experts_is_refused_with_the_reason():
    with pytest.raises(prw.TargetError, match="put it into one"):
        prw.inject(nn.MultiheadAttention(8, 2))
    with pytest.raises(prw.TargetError, match="kdim and vdim differ"):
        prw.inject(Attending(kdim=4, vdim=6))
    with pytest.raises(prw.TargetError, match="matched nothing"):
        prw.inject(Attending(), target="out_proj")
    model = Attending()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attention"]), model)
    with pytest.raises(prw.TargetError, match="Inject the pool first"):
        prw.inject(model, adapter="pool")


def test_fusing_while_a_pool_is_attached_is_refused_and_fused_models_are_found(make_host):
    host = make_host("flux")
    weave = prw.inject(host.model, rank=2, experts=["a"])
    with pytest.raises(prw.UnsupportedError, match=r"transformer_blocks.0.attn.to_k.*eject"):
        host.model.fuse_qkv_projections()
    weave.eject()
    host.model.fuse_qkv_projections()
    weave = prw.inject(host.model, rank=2, experts=["a"])
    assert [site.modules for site in weave.sites] == [
        ("transformer_blocks.0.attn.to_qkv",),
        ("single_transformer_blocks.0.attn.to_qkv",),
    ]
    weave.eject()
    with pytest.raises(prw.TargetError, match="is not called any more"):
        prw.inject(host.model, target=["to_k", "to_v"])
