"""Where features meet: fused projections with every setting, a curriculum's ledger with names and ranks."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import prw


class Fused(nn.Module):
    """One attention with fused queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        return torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value


class Model(nn.Module):
    """Two of them, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Fused(), Fused()])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


HIDDEN = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(3))
SETTINGS = {
    "top_k": {"top_k": 2},
    "unit": {"gate": "unit", "top_k": 2},
    "ranks": {"rank_pattern": {"blocks.1.*": 5}, "alpha_pattern": {"blocks.0.*": 3}},
    "sample": {"granularity": "sample"},
    "dense": {"kernel": "dense", "top_k": 3},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_a_fused_projection_takes_every_setting(options, wake, tmp_path) -> None:
    torch.manual_seed(0)
    base = Model().eval()
    model = copy.deepcopy(base)
    weave = prw.inject(model, rank=2, experts=["a", "b"], **options)
    assert torch.equal(model(HIDDEN), base(HIDDEN))
    wake(weave)
    model.eval()
    queries = [block.qkv(HIDDEN)[..., :8] for block in (base.blocks[0], model.blocks[0])]
    assert torch.equal(*queries)
    other = copy.deepcopy(model)
    prw.Weave(other).pool.settings = weave.settings.model_copy(update={"kernel": "reference"})
    assert torch.allclose(other(HIDDEN), model(HIDDEN), atol=1e-5)
    weave.save_pretrained(tmp_path)
    loaded = copy.deepcopy(base)
    prw.load(loaded, tmp_path)
    assert torch.equal(loaded.eval()(HIDDEN), model(HIDDEN))
    with weave.as_of("a"):
        alone = model(HIDDEN)
    weave.remove_expert("b")
    assert torch.equal(model(HIDDEN), alone)


def test_one_expert_of_fused_projections_merges_into_the_base(wake) -> None:
    model = Model().eval()
    weave = prw.inject(model, rank=2, experts=["a"])
    wake(weave)
    with_experts = model.eval()(HIDDEN)
    weave.merge()
    assert type(model.blocks[0].qkv) is nn.Linear
    assert torch.allclose(model(HIDDEN), with_experts, atol=1e-5)


def test_an_export_of_fused_projections_is_measured(wake, tmp_path) -> None:
    model = Model().eval()
    weave = prw.inject(model, rank=2, experts=["a", "b"], gate="unit")
    wake(weave)
    report = weave.export_lora("b", tmp_path, measure=HIDDEN)
    assert report.chosen is not None and report.mean_gate in (0.0, 1.0)
    assert (report.mean_difference == pytest.approx(0.0, abs=1e-6)) == (report.chosen == 1.0)


def stage(name: str, **changes) -> prw.Stage:
    return prw.Stage(name, **{"rho": 0.8, "alpha": 0.5, "steps": 10, "lr": 1e-4, **changes})


def test_a_renamed_expert_keeps_its_past(make_plain) -> None:
    weave = prw.inject(make_plain(), rank=2)
    course = prw.Curriculum([stage("a"), stage("b", init="a")])
    for _ in course.stages(weave):
        weave.freeze()
    weave.rename_expert("a", "style")
    renamed = prw.Curriculum([stage("style"), stage("b", init="style")])
    assert list(renamed.stages(weave)) == []
    with pytest.raises(prw.CurriculumError, match="lr"):
        list(prw.Curriculum([stage("style", lr=1.0), stage("b", init="style")]).stages(weave))


def test_a_pool_is_brought_forward_with_ranks_of_its_own(make_plain, tmp_path) -> None:
    plain = make_plain()
    lora = LoraConfig(r=5, target_modules=[name for name, m in plain.named_modules() if is_key(name, m)])
    get_peft_model(copy.deepcopy(plain), lora).save_pretrained(tmp_path / "lora")
    weave = prw.inject(plain, rank=2)
    weave.import_lora(tmp_path / "lora", name="a")
    weave.add_expert("b")
    weave.model.train()(torch.randn(2, 5, 8))
    weave.save_pretrained(tmp_path / "pool")
    other = prw.inject(make_plain(), rank=2)
    prw.Curriculum([stage("a"), stage("b")]).resume(other, tmp_path / "pool")
    assert other.config.expert_ranks == weave.config.expert_ranks != {}
    ours, theirs = weave.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if ".prw_" in name)


def is_key(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in ("to_k", "k_proj", "key", "to_v")


def test_a_growth_that_fails_leaves_the_pool_as_it_was(make_plain, monkeypatch) -> None:
    weave = prw.inject(make_plain(), rank=2, experts=["a"])
    before = {name for name, _ in weave.model.named_parameters()}
    layer_class = type(next(m for m in weave.model.modules() if hasattr(m, "add_expert")))
    calls: list[int] = []

    def fails_later(self, adapter: str, index: int, add=layer_class.add_expert) -> None:
        calls.append(index)
        if len(calls) > 1:
            raise MemoryError("no room")
        add(self, adapter, index)

    monkeypatch.setattr(layer_class, "add_expert", fails_later)
    with pytest.raises(MemoryError):
        weave.add_expert("b")
    monkeypatch.undo()
    assert weave.experts == ("a",) and not weave.frozen
    assert {name for name, _ in weave.model.named_parameters()} == before
    weave.add_expert("b")
    assert weave.experts == ("a", "b")
