"""Under CUDA's autocast, which computes norms in float32, nothing wide is float32 between the norms."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import prw
from prw.layers import site as prw_site
from recipes.cologen.flux import FluxBase, SourceKV, two_step
from recipes.cologen.flux.source_stream import flux_attentions
from tests.cuda_autocast import cuda_autocast

Build = Callable[..., FluxBase]
Inputs = Callable[..., tuple]
WAYS = ["same", "zero", "cached"]


def woven(base: Build, dtype: torch.dtype = torch.bfloat16) -> tuple[FluxBase, prw.Weave]:
    """A base of a dtype with two experts in float32 that are heard."""
    torch.manual_seed(0)
    model = base()
    model.transformer.to(dtype)
    weave = prw.inject(model.transformer, target="kv", rank=4, experts=["a", "b"])
    for name, parameter in model.transformer.named_parameters():
        if "prw_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model, weave


class Seen:
    """The dtypes on the way: what attention reads and gives, what projections and routers read, residuals."""

    def __init__(self, model: FluxBase, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}
        dispatch, decide = two_step.dispatch_attention_fn, prw_site.decide

        def attention(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
            output = dispatch(query, key, value, **settings)
            self.note("query, key, value", query, key, value)
            self.note("attention", output)
            return output

        def decision(hidden: Tensor, *args: object) -> object:
            self.note("router", hidden)
            return decide(hidden, *args)

        attentions = flux_attentions(model.transformer)
        monkeypatch.setattr(two_step, "dispatch_attention_fn", attention)
        monkeypatch.setattr(prw_site, "decide", decision)
        for name, module in model.transformer.named_modules():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in ("proj_out", "0", "to_out"):
                module.register_forward_pre_hook(self.hook("concatenated" if "single" in name else "joined"))
            if name.rpartition(".")[0] in attentions and not isinstance(module, nn.ModuleList):
                module.register_forward_pre_hook(self.hook("projection"))
            if name.count(".") == 1 and "transformer_blocks" in name:
                module.register_forward_hook(self.after("residual"))

    def note(self, what: str, *tensors: Tensor) -> None:
        """Keep the dtypes of some tensors."""
        self.dtypes.setdefault(what, set()).update(tensor.dtype for tensor in tensors)

    def hook(self, what: str) -> Callable[..., None]:
        return lambda module, args: self.note(what, args[0])

    def after(self, what: str) -> Callable[..., None]:
        return lambda module, args, output: self.note(
            what, *([output] if isinstance(output, Tensor) else output)
        )


def run(model: FluxBase, args: tuple, way: str) -> tuple[Tensor, SourceKV | None]:
    noise, timestep, text, source = args
    if way != "cached":
        return model.velocity(noise, timestep, text, source, way), None
    pairs = model.source_kv(source, text)
    return model.velocity(noise, timestep, text, pairs, "zero"), pairs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grad", [True, False])
def test_nothing_wide_is_float32_on_the_way(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, way: str, grad: bool
) -> None:
    model, weave = woven(either)
    args = inputs(model)
    seen = Seen(model, monkeypatch)
    with cuda_autocast(), torch.set_grad_enabled(grad):
        velocity, pairs = run(model, args, way)
    assert velocity.dtype is torch.bfloat16
    if pairs is not None:
        assert {one.dtype for site in pairs.sites for one in pairs.read(site)} == {torch.bfloat16}
    wide = {"query, key, value", "attention", "projection", "concatenated", "residual", "router"}
    assert wide <= seen.dtypes.keys()
    assert {what: seen.dtypes[what] for what in wide} == {what: {torch.bfloat16} for what in wide}
    if grad:
        velocity.float().square().mean().backward()
        assert {one.grad.dtype for one in weave.trainable_parameters()} == {torch.float32}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_autocast_everything_has_the_bases_dtype(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype
) -> None:
    model, _ = woven(either, dtype)
    args = inputs(model)
    seen = Seen(model, monkeypatch)
    with torch.no_grad():
        velocity, _ = run(model, args, way)
    assert velocity.dtype is dtype
    assert {what: dtypes for what, dtypes in seen.dtypes.items() if dtypes != {dtype}} == {}


def test_pairs_that_were_cached_outside_of_autocast_are_read_inside_it(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = woven(either, torch.float32)
    noise, timestep, text, source = inputs(model)
    with torch.no_grad():
        pairs = model.source_kv(source, text)
        exact = model.velocity(noise, timestep, text, pairs, "zero")
        seen = Seen(model, monkeypatch)
        with cuda_autocast():
            rough = model.velocity(noise, timestep, text, pairs, "zero")
    assert seen.dtypes["query, key, value"] == seen.dtypes["attention"] == {torch.bfloat16}
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_projection_that_gives_its_inputs_dtype_changes_nothing(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    """As `Linear4bit` of bitsandbytes does: it computes in its own dtype and casts back."""
    model, _ = woven(either)
    args = inputs(model)
    for attn in flux_attentions(model.transformer).values():
        for module in attn.modules():
            if type(module) is nn.Linear:
                plain = module.forward
                module.forward = lambda hidden, plain=plain: plain(hidden.bfloat16()).to(hidden.dtype)
    seen = Seen(model, monkeypatch)
    with cuda_autocast() if autocast else nullcontext():
        run(model, args, "same")
    found = [seen.dtypes[what] for what in ("query, key, value", "attention", "projection", "router")]
    assert found == [{torch.bfloat16}] * 4
