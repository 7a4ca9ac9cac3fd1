"""An exported expert in stock PEFT and diffusers, and the measure of how far it is from its pool."""

import copy

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

import prw
from prw.storage import LoraExport
from tests.prw.storage.loras import lora_folder

SETTINGS = {"rank": 4, "alpha": 6.0}


def fresh(model):
    """The same base without a pool."""
    again = type(model)(**({} if not hasattr(model, "config") else dict(model.config)))
    names = {n.replace(".base_layer", ""): p for n, p in model.state_dict().items() if ".prw_" not in n}
    again.load_state_dict(names)
    return again.eval()


def plain(weave, name, run):
    """What the expert computes alone with weight one: a pool from which the others are taken out."""
    twin = prw.Weave(copy.deepcopy(weave.model))
    for other in weave.experts:
        if other != name:
            twin.remove_expert(other)
    return run(twin.model)


@pytest.mark.parametrize(
    "patterns", [{}, {"rank_pattern": {"to_v": 3, "1.to_k": 5}, "alpha_pattern": {"to_k": 3.0}}]
)
def test_it_loads_in_stock_peft(make_plain, wake, tmp_path, patterns):
    base = make_plain().eval()
    weave = prw.inject(base, rank=4, alpha=6.0, experts=["a", "b"], **patterns)
    wake(weave)
    hidden = torch.randn(3, 5, 8)
    report = weave.export_lora("b", tmp_path / "b")
    stock = PeftModel.from_pretrained(fresh(base), tmp_path / "b").eval()
    assert torch.allclose(stock(hidden), plain(weave, "b", lambda model: model(hidden)), atol=1e-6)
    assert torch.allclose(stock.merge_and_unload()(hidden), stock(hidden), atol=1e-5)
    assert report == LoraExport(tmp_path / "b", "b", exact=False)


def test_an_imported_expert_goes_out_as_it_came_in(make_plain, tmp_path):
    base = make_plain().eval()
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, target_modules=["to_v"], use_rslora=True))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    lora.save_pretrained(tmp_path / "in")
    weave = prw.inject(base, rank=2, experts=["a"])
    weave.import_lora(tmp_path / "in", name="style")
    weave.export_lora("style", tmp_path / "out")
    stock = PeftModel.from_pretrained(fresh(base), tmp_path / "out").eval()
    hidden = torch.randn(2, 5, 8)
    assert torch.allclose(stock(hidden), lora.eval()(hidden), atol=1e-6)
    assert {n.split(".")[-2] for n in stock.targeted_module_names} == {"1", "0"}
    assert all(name.endswith("to_v") for name in stock.targeted_module_names)


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"to_v": 3}, "alpha_pattern": {"to_k": 3.0}}])
def test_it_loads_in_diffusers(make_host, wake, tmp_path, patterns):
    host = make_host("flux")
    host.model.eval()
    weave = prw.inject(host.model, rank=4, alpha=6.0, experts=["a", "b"], **patterns)
    wake(weave)
    wanted = plain(weave, "b", lambda model: model(**host.inputs).sample)
    weave.export_lora("b", tmp_path / "b", layout="diffusers")
    stock = FluxTransformer2DModel.from_config(host.model.config).eval()
    names = {n.replace(".base_layer", ""): p for n, p in host.model.state_dict().items() if ".prw_" not in n}
    stock.load_state_dict(names)
    base = stock(**host.inputs).sample
    stock.load_lora_adapter(tmp_path / "b", use_safetensors=True)
    got = stock(**host.inputs).sample
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not torch.allclose(got, base, atol=1e-3)
    weights, _ = FluxPipeline.lora_state_dict(tmp_path / "b", return_alphas=True)
    assert all("lora" in name and name.startswith("transformer.") for name in weights)
    stock.delete_adapters("default_0")
    FluxPipeline.load_lora_into_transformer(weights, None, stock, adapter_name="b")
    assert torch.allclose(stock(**host.inputs).sample, wanted, atol=1e-5)
    weave.import_lora(tmp_path / "b", name="again", strict=True)
    assert torch.allclose(plain(weave, "again", lambda model: model(**host.inputs).sample), wanted, atol=1e-5)


def test_another_layout_is_refused(make_plain, tmp_path):
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    with pytest.raises(prw.ConfigError, match="'peft' and 'diffusers', got 'kohya'"):
        weave.export_lora("a", tmp_path / "a", layout="kohya")
    assert not (tmp_path / "a").exists()


def test_the_measure_of_a_pool_of_one_is_nothing(make_plain, wake, tmp_path):
    base = make_plain()
    weave = prw.inject(base, rank=3, experts=["a"])
    wake(weave)
    report = weave.export_lora("a", tmp_path, measure=torch.randn(2, 5, 8))
    assert report[2:7] == (True, 1.0, 1.0, 0.0, 0.0)
    assert report.output_difference == pytest.approx(0.0, abs=1e-6)
    assert "this LoRA does the same" in (tmp_path / "README.md").read_text()
    assert base.training, "measuring evaluates, and gives the mode back"


@settings(max_examples=12)  # each writes a folder to disk
@given(st.integers(2, 4), st.sampled_from(["prob", "unit"]), st.integers(1, 3), st.integers(0, 5))
def test_the_measure_is_what_it_says(tmp_path_factory, size, gate, top_k, seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4)).eval()
    weave = prw.inject(
        model,
        target="0",
        rank=2,
        experts=[str(i) for i in range(size)],
        gate=gate,
        top_k=top_k,
        granularity="token",
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 7, 6)
    report = weave.export_lora("1", tmp_path_factory.mktemp("lora"), measure=lambda: model(hidden))
    with weave.record() as routing:
        pooled = model(hidden)
    (decision,) = routing.all()
    mine = decision.choices == 1
    weight = (mine * decision.weights.reshape(mine.shape)).sum(-1, keepdim=True)
    layer = model[0]
    part = 2.0 * hidden @ layer.prw_A1["default"].weight.T @ layer.prw_B1["default"].weight.T
    assert report.chosen == pytest.approx(mine.any(-1).float().mean().item())
    if mine.any():
        assert report.mean_gate == pytest.approx(decision.weights.reshape(mine.shape)[mine].mean().item())
    wanted = ((weight * part - part).norm() / part.norm()).item()
    assert report.mean_difference == pytest.approx(wanted, abs=1e-5)
    assert report.max_difference == report.mean_difference
    alone = layer.base_layer(hidden) + part
    assert report.output_difference == pytest.approx(
        ((pooled - alone).norm() / alone.norm()).item(), abs=1e-5
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT reads it
def test_it_is_measured_on_a_whole_model_and_written_down(make_host, wake, tmp_path):
    host = make_host("llama")
    weave = prw.inject(host.model, rank=4, experts=["a", "b"])
    wake(weave)
    report = weave.export_lora("a", tmp_path, measure=host.inputs)
    assert 0.0 < report.chosen < 1.0
    assert 0.5 < report.mean_gate < 1.0
    assert 0.0 < report.mean_difference <= report.max_difference < 1.0
    host.model.eval()
    pooled, alone = host(), plain(weave, "a", lambda model: model(**host.inputs).logits)
    assert report.output_difference > 0.0
    with weave.record() as routing:
        host()
    share = torch.cat([d.expert_ids.flatten() for d in routing.all()]).eq(0).float().mean().item()
    assert report.chosen == pytest.approx(share)
    text = (tmp_path / "README.md").read_text()
    assert "**It is not what the pool does.** The pool has 2 experts (a, b)" in text
    for number in (f"{report.chosen:.1%}", f"{report.mean_gate:.3f}", f"{report.output_difference:.3f}"):
        assert number in text
    assert not torch.equal(pooled, alone)
    stock = PeftModel.from_pretrained(fresh_llama(host.model), tmp_path).eval()
    assert torch.allclose(stock(**host.inputs).logits, alone, atol=1e-5)


def test_the_measure_as_of_the_expert_is_of_the_pool_of_its_stage(make_host, wake, tmp_path):
    host = make_host("llama")
    weave = prw.inject(host.model, rank=4, experts=["a", "b", "c"])
    wake(weave)
    first = weave.export_lora("a", tmp_path / "first", measure=host.inputs)
    assert first.mean_difference > 0.1
    assert first.difference_as_of == 0.0
    text = (tmp_path / "first" / "README.md").read_text()
    assert "It is not what the pool does" in text
    assert "weave.as_of('a')" in text
    assert "as of this expert's stage | 0.000 |" in text
    middle = weave.export_lora("b", tmp_path / "middle", measure=host.inputs)
    with weave.as_of("b"):
        inside = weave.export_lora("b", tmp_path / "inside", measure=host.inputs)
        assert "The pool has 2 experts (a, b)" in (tmp_path / "inside" / "README.md").read_text()
        later = weave.export_lora("c", tmp_path / "later", measure=host.inputs)
    assert inside.mean_difference == inside.difference_as_of == middle.difference_as_of
    assert (later.chosen, later.difference_as_of) == (0.0, None)
    last = weave.export_lora("c", tmp_path / "last", measure=host.inputs)
    assert last.difference_as_of == last.mean_difference
    with weave.as_of("a"):
        exact = weave.export_lora("a", tmp_path / "exact", measure=host.inputs)
    assert exact.exact
    assert (exact.chosen, exact.mean_difference) == (1.0, 0.0)
    assert "this LoRA does the same" in (tmp_path / "exact" / "README.md").read_text()


def fresh_llama(model):
    again = type(model)(model.config)
    again.load_state_dict(
        {n.replace(".base_layer", ""): p for n, p in model.state_dict().items() if ".prw_" not in n}
    )
    return again


def test_tokens_that_are_not_routed_count_as_weight_zero(make_plain, wake, tmp_path):
    base = make_plain(blocks=1).eval()
    weave = prw.inject(base, rank=2, experts=["a"])
    wake(weave)
    hidden = torch.randn(1, 4, 8)
    layer = base.blocks[0].to_k
    part = (layer(hidden) - layer.base_layer(hidden)).square().sum(-1)[0]
    with weave.route_only(torch.tensor([[True, False, True, True]])):
        report = weave.export_lora("a", tmp_path / "masked", measure=lambda: layer(hidden))
    assert report.mean_difference == pytest.approx((part[1] / part.sum()).sqrt().item(), abs=1e-5)
    report = weave.export_lora(
        "a", tmp_path / "not routed", measure=lambda: prw.project(layer, hidden, routed=False)
    )
    assert report.mean_difference == 1.0
    both = lambda: (layer(hidden), prw.project(layer, hidden, routed=False))  # noqa: E731  # half of it routed
    report = weave.export_lora("a", tmp_path / "both", measure=both)
    assert report.mean_difference == pytest.approx(0.5**0.5)
    unmeasured = weave.export_lora("a", tmp_path / "unmeasured")
    assert unmeasured.mean_gate is None
    weave.add_expert("b")
    weave.export_lora("a", tmp_path / "unmeasured")
    assert "was not measured" in (tmp_path / "unmeasured" / "README.md").read_text()


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
