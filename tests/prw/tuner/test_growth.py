"""What trains when: an optimiser that outlives a growth leaves veterans alone, and so do pools each other."""

import pytest
import torch
from peft import PeftModel, get_peft_model

import prw


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_an_optimiser_made_before_growth_leaves_veterans_alone(make_plain, wake, optimiser):
    model, hidden = make_plain(), torch.randn(2, 5, 8)
    weave = prw.inject(model, rank=2, experts=["a"])
    wake(weave)
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    }[optimiser]
    optimizer = make(weave.trainable_parameters())

    def step():
        with weave.record() as routing:
            loss = model(hidden).square().mean()
        (loss + prw.veteran_loss(routing, rho=0.8, alpha=0.5)).backward()
        optimizer.step()

    for _ in range(2):
        step()
    weave.add_expert("b", init="a")
    optimizer.add_param_group({"params": weave.trainable_parameters()})
    before = {name: weight.clone() for name, weight in model.named_parameters() if "0.default" in name}
    for _ in range(2):
        step()  # no zero_grad: what the veteran had is stale
    moved = [name for name, weight in before.items() if not torch.equal(model.get_parameter(name), weight)]
    assert moved == []
    assert all(p.grad is not None for p in weave.trainable_parameters())


def test_parameters_that_cannot_train_are_no_answer(make_plain, wake, tmp_path):
    wrapped = get_peft_model(make_plain(), prw.PrwConfig(rank=2, experts=["a"]))
    wrapped.add_adapter("other", prw.PrwConfig(rank=2, experts=["x"]))
    weave = prw.Weave(wrapped)
    assert weave.trainable_parameters()
    wrapped.set_adapter("other")
    weave.add_expert("b")
    with pytest.raises(prw.PoolError, match=r"12 of the 12 .*set_adapter\('default'\)"):
        weave.trainable_parameters()
    wrapped.set_adapter("default")
    assert all(p.requires_grad for p in weave.trainable_parameters())
    wrapped.save_pretrained(tmp_path, selected_adapters=["default"])
    loaded = prw.Weave(PeftModel.from_pretrained(make_plain(), tmp_path))
    assert ", 0 train" in loaded.summary()
    with pytest.raises(prw.PoolError, match="is_trainable=True"):
        loaded.trainable_parameters()
    loaded.add_expert("c")
    assert all(p.requires_grad for p in loaded.trainable_parameters())


def test_a_pool_shrinks_where_another_is_alone_with_a_router(make_plain, wake):
    model, hidden = make_plain().eval(), torch.randn(2, 5, 8)
    kv = prw.inject(model, rank=2, experts=["a", "b"], adapter="A")
    prw.inject(model, target=["to_v"], rank=2, experts=["x", "y"], adapter="B")
    wake(kv)
    weights = model.blocks[0].to_v.prw_gate0["B"].weight.clone()
    kv.remove_expert("a")
    assert kv.experts == ("b",)
    assert torch.equal(model.blocks[0].to_v.prw_gate0["B"].weight, weights)
    assert model(hidden).isfinite().all()
