"""Whole samples where axis 0 is not the sample: refused where that shows, right where the caller says it."""

import copy

import pytest
import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from peft.functional import delete_adapter
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2VLConfig, SwinConfig, SwinModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

import prw
from prw.routing import SampleGroups
from prw.tuner import PrwLinear

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
POOL = {"rank": 2, "experts": ["a", "b", "c"], "granularity": "sample", "noise": False, "gate_std": 2.0}


def qwen_tower():
    torch.manual_seed(0)
    tiny = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=tiny).vision_config
    return Qwen2VisionTransformerPretrainedModel._from_config(config, attn_implementation="eager").eval()


def patches(*sizes, seed=0):
    """Patches of pictures, each of so many rows of patches by four, and the grid and picture of each."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [
        torch.randn(4 * size, 3 * 2 * 4 * 4, generator=generator) * (1 + n) for n, size in enumerate(sizes)
    ]
    grid = torch.tensor([[1, size, 4] for size in sizes])
    index = torch.cat([torch.full((4 * size,), n) for n, size in enumerate(sizes)])
    return pictures, grid, index


def test_pictures_laid_end_to_end_are_refused_unless_each_rows_picture_is_said(wake):
    model = qwen_tower()
    weave = prw.inject(model, **POOL)
    wake(weave)
    pictures, grid, index = patches(2, 4)
    with torch.no_grad():
        with pytest.raises(prw.RoutingError, match=r"sees rows of shape \(24, 16\).*weave\.samples"):
            model(torch.cat(pictures), grid_thw=grid)
        with weave.samples(index), weave.record() as routing:
            both = model(torch.cat(pictures), grid_thw=grid).last_hidden_state
        with weave.samples(1):
            alone = [
                model(picture, grid_thw=row[None]).last_hidden_state
                for picture, row in zip(pictures, grid, strict=True)
            ]
    assert torch.allclose(both, torch.cat(alone), **CLOSE), "a picture does not depend on the other"
    assert [decision.expert_ids.shape for decision in routing.all()] == [(2, 1)] * 2, "one decision a picture"


def swin():
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 2],
        window_size=4,
        mlp_ratio=2.0,
    )
    return SwinModel(config).eval()


def test_windows_in_axis_0_are_refused_unless_the_number_of_samples_is_said(wake):
    model = swin()
    weave = prw.inject(model, **POOL)
    wake(weave)
    pictures = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        with pytest.raises(prw.RoutingError, match=r"sees 8 along it.* called with 2: likely windows"):
            model(pictures)
        with weave.samples(2), weave.record() as routing:
            both = model(pictures).last_hidden_state
        with weave.samples(1):
            alone = model(pictures[:1]).last_hidden_state
    assert torch.allclose(both[:1], alone, **CLOSE)
    assert {decision.expert_ids.shape for decision in routing.all()} == {(2, 1)}


class TokensFirst(nn.Module):
    """A model of batches whose attention wants tokens in axis 0."""

    def __init__(self, first):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.first = first

    def forward(self, hidden):
        hidden = hidden.transpose(0, 1) if self.first else hidden
        query, key, value = self.to_q(hidden), self.to_k(hidden), self.to_v(hidden)
        if self.first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def batches_and_tokens(wake):
    torch.manual_seed(0)
    models = [TokensFirst(first).eval() for first in (False, True)]
    weaves = [prw.inject(model, **POOL) for model in models]
    wake(weaves[0])
    models[1].load_state_dict(models[0].state_dict())
    return models, weaves


def test_tokens_first_are_refused_unless_said_and_then_equal_the_usual_order(wake):
    models, weaves = batches_and_tokens(wake)
    hidden = torch.randn(3, 5, 8) * torch.tensor([1.0, 4.0, -3.0])[:, None, None]
    expected = models[0](hidden)
    with pytest.raises(prw.RoutingError, match=r"sees 5 along it.* called with 3.*tokens first"):
        models[1](hidden)
    with weaves[1].samples(torch.arange(3).expand(5, 3)):
        assert torch.allclose(models[1](hidden), expected, **CLOSE)
    with weaves[0].samples(torch.arange(3)):
        assert torch.allclose(models[0](hidden), expected, **CLOSE)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.parametrize("whole", [False, True], ids=["with breaks", "fullgraph"])
@pytest.mark.parametrize("block_alone", [False, True], ids=["model", "block"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_compiled_model_refuses_rows_of_several_samples_too(whole, block_alone, training):
    model = nn.Sequential(TokensFirst(False)).train(training)
    weave = prw.inject(model, **POOL)
    rows = torch.randn(5, 8)
    (model[0] if block_alone else model).compile(backend="eager", fullgraph=whole)
    with torch.set_grad_enabled(training):
        with pytest.raises(Exception, match=r"granularity='sample' takes axis 0 for the sample") as refused:
            model(rows)
        assert whole or isinstance(refused.value, prw.RoutingError)
        torch._dynamo.reset()  # which compiles no model whole that has once failed
        with weave.samples(torch.arange(5) // 3):
            assert torch.isfinite(model(rows)).all()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_of_torchs_attention_takes_rows_for_one_sample():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}).eval()
    prw.inject(model, **POOL)
    hidden = torch.randn(5, 8)
    eager, _ = model["attention"](hidden, hidden, hidden)
    model["attention"].compile(backend="eager")
    assert torch.allclose(model["attention"](hidden, hidden, hidden)[0], eager, **CLOSE)


def test_a_model_that_peft_wraps_is_looked_at_too():
    model = get_peft_model(TokensFirst(True), prw.PrwConfig(**POOL))
    with pytest.raises(prw.RoutingError, match="along it"):
        model(torch.randn(3, 5, 8))


def test_a_copy_is_looked_at_too_and_eject_leaves_no_hook_behind():
    model = TokensFirst(True)
    weave = prw.inject(model, **POOL)
    twin = copy.deepcopy(model)
    weave.eject()
    model(torch.randn(3, 5, 8))
    with pytest.raises(prw.RoutingError, match="along it"):
        twin(torch.randn(3, 5, 8))
    prw.Weave(twin).eject()
    for left in (model, twin):
        assert not left._forward_pre_hooks
        assert not left._forward_hooks


def hooks_of(*modules):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]


@pytest.mark.parametrize("way", ["unload", "merge_and_unload", "delete_adapter"])
def test_peft_takes_a_pools_hooks_out_with_it(way):
    constant = {**POOL, "experts": ["a"]}
    wrapped = get_peft_model(swin(), prw.PrwConfig(**constant))
    model, tuner = wrapped.base_model.model, wrapped.base_model
    assert hooks_of(model, tuner) == [2, 2]
    getattr(wrapped, way)(*(["default"] if way == "delete_adapter" else []))
    assert hooks_of(model, tuner) == [0, 0]


@pytest.mark.parametrize("way", ["diffusers", "peft.functional"])
def test_hooks_go_at_the_next_forward_where_nobody_says_that_the_pool_has_gone(way):
    model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = torch.nn.TransformerEncoder(model, 1, enable_nested_tensor=False)
    prw.inject(model, **POOL)
    model(torch.randn(2, 3, 16))
    assert hooks_of(model) == [2]
    if way == "diffusers":
        recurse_remove_peft_layers(model)
    else:
        delete_adapter(model, "default", "prw_", PrwLinear)
    model(torch.randn(2, 3, 16))
    assert hooks_of(model) == [0]


def test_torchs_attention_without_a_batch_axis_is_one_sample():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    weave = prw.inject(model, **POOL)
    hidden = torch.randn(5, 8)
    with weave.record() as routing:
        model["attention"](hidden, hidden, hidden)
    assert routing.all()[0].expert_ids.shape == (1, 1)


def test_the_losses_count_each_sample_once_and_train_the_router(wake):
    models, weaves = batches_and_tokens(wake)
    hidden = torch.randn(3, 5, 8)
    with weaves[0].record() as usual:
        models[0](hidden)
    with weaves[1].samples(torch.arange(3).expand(5, 3)), weaves[1].record() as said:
        models[1](hidden)
    for per in ("batch", "sample"):
        losses = [prw.veteran_loss(routing, 0.7, 1.0, per=per) for routing in (usual, said)]
        assert torch.allclose(*losses, **CLOSE)
    losses[1].backward()
    assert weaves[1].model.to_k.prw_gate2["default"].weight.grad.abs().sum() > 0


def test_a_samples_mean_is_that_of_its_routed_rows(wake):
    models, weaves = batches_and_tokens(wake)
    hidden, mask = torch.randn(3, 5, 8), torch.rand(3, 5) > 0.4
    mask[1] = False
    with weaves[0].route_only(mask):
        expected = models[0](hidden)
    with weaves[1].route_only(mask.T), weaves[1].samples(torch.arange(3).expand(5, 3)):
        assert torch.allclose(models[1](hidden), expected, **CLOSE)


def test_backward_under_checkpointing_belongs_inside_the_block(wake):
    models, weaves = batches_and_tokens(wake)
    hidden, index = torch.randn(3, 5, 8), torch.arange(3).expand(5, 3)
    with weaves[1].samples(index):
        output = checkpoint(models[1], hidden, use_reentrant=False)
        output.sum().backward()
        again = checkpoint(models[1], hidden, use_reentrant=False)
    with pytest.raises(prw.RoutingError, match="Call backward"):
        again.sum().backward()


@pytest.mark.parametrize(
    "index", [0, -1, True, 1.5, torch.ones(3), torch.tensor([-1, 0]), torch.zeros(1, 1, 1).int()]
)
def test_what_is_no_index_is_refused(index):
    weave = prw.inject(TokensFirst(False), **POOL)
    with pytest.raises(prw.ConfigError, match="samples takes the number"), weave.samples(index):
        pass


def test_an_index_of_other_rows_is_refused():
    model = TokensFirst(False)
    weave = prw.inject(model, **POOL)
    for index, said in ((torch.arange(4), r"shape \(4,\)"), (2, "do not divide")):
        with pytest.raises(prw.RoutingError, match=said), weave.samples(index):
            model(torch.randn(3, 5, 8))


def test_it_means_nothing_where_tokens_are_routed():
    weave = prw.inject(TokensFirst(False), rank=2)
    with pytest.raises(prw.ConfigError, match="every token is routed by itself"), weave.samples(2):
        pass


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**16), st.booleans())
def test_the_mean_of_a_group_is_that_of_its_routed_rows(index, seed, masked):
    torch.manual_seed(seed)
    groups = SampleGroups(torch.tensor(index), 4)
    features = torch.randn(1, len(index), 3, dtype=torch.float64)
    routed = torch.rand(1, len(index)) > 0.5 if masked else None
    for sample, mean in enumerate(groups.mean(features, routed)):
        rows = [i for i, of in enumerate(index) if of == sample and (routed is None or routed[0, i])]
        assert torch.allclose(mean[0], features[0, rows].mean(0) if rows else torch.zeros(3).double())
        assert groups.any_routed(routed, features)[sample].item() == bool(rows)


class Guided(nn.Module):
    """Doubles its batch for classifier-free guidance."""

    def __init__(self, blocks=1):
        super().__init__()
        self.blocks = nn.ModuleList(TokensFirst(False) for _ in range(blocks))

    def forward(self, hidden):
        hidden = torch.cat([hidden, torch.zeros_like(hidden)])
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


def test_a_batch_doubled_for_guidance_is_refused_with_the_number_that_fixes_it():
    model = Guided()
    weave = prw.inject(model, **POOL)
    hidden = torch.randn(3, 5, 8)
    with pytest.raises(prw.RoutingError, match=r"guidance.*weave\.samples\(6\)`, which is samples\(2 \* B\)"):
        model(hidden)
    with weave.samples(6):
        assert model(hidden).shape == (6, 5, 8)


class Counts(TorchDispatchMode):
    """Counts how often rows are numbered."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += func.overloadpacket is torch.ops.aten.arange
        return func(*args, **(kwargs or {}))


def test_the_samples_of_the_rows_are_worked_out_once_for_all_sites():
    model = Guided(blocks=5)
    weave = prw.inject(model, **POOL)
    with weave.samples(6):
        with Counts() as counts, torch.inference_mode():
            model(torch.randn(3, 5, 8))
            model(torch.randn(3, 5, 8))
        inference = counts.made
        with Counts() as counts:
            model(torch.randn(3, 5, 8)).square().mean().backward()
        training = counts.made
        with Counts() as counts:
            model(torch.randn(3, 7, 8))
    assert (inference, training, counts.made) == (1, 1, 1)
    assert all(parameter.grad is not None for parameter in weave.trainable_parameters())


def test_an_index_that_is_changed_in_place_is_read_again(wake):
    model = TokensFirst(False).eval()
    weave = prw.inject(model, **POOL)
    wake(weave)
    index, hidden = torch.tensor([0, 1, 1]), torch.randn(3, 5, 8)
    with weave.samples(torch.tensor([0, 0, 1])):
        wanted = model(hidden)
    with weave.samples(index):
        before = model(hidden)
        index.copy_(torch.tensor([0, 0, 1]))
        assert torch.equal(model(hidden), wanted)
    assert not torch.equal(before, wanted)
