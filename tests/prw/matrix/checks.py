"""What every family of the matrix is asked: each check is a function that fails by an assertion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prw
from prw.kernels import OutputSlice
from prw.tuner import PrwLinear
from prw.tuner.mha import PrwAttention
from tests.prw.matrix.family import BATCH, Family

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inject(model: nn.Module, family: Family, *experts: str) -> prw.Weave:
    return prw.inject(model, rank=2, experts=experts, **family.options)


def run(family: Family, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return family.read(model(**inputs))


def wake(weave: prw.Weave) -> None:
    """Give every B and every router vector values, as training would."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in weave.model.named_parameters():
        if ".prw_B" in name or ".prw_gate" in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def layers(model: nn.Module) -> dict[str, PrwLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PrwLinear)}


def identity(family: Family, _: Path) -> None:
    """The output after injection is the frozen base's, bit for bit; with trained experts it is not.

    Torch's own attention has fused inference calls, which are not taken with experts: there, to a rounding.
    """
    model, inputs = family.made(), family.drawn()
    before = run(family, model, inputs)
    weave = inject(model, family)
    assert torch.equal(run(family, model, inputs), before)
    weave.add_expert("a")
    if any(isinstance(layer, PrwAttention) for layer in layers(model).values()):
        assert torch.allclose(run(family, model, inputs), before, **CLOSE)
    else:
        assert torch.equal(run(family, model, inputs), before)
    wake(weave)
    assert not torch.equal(run(family, model, inputs), before)
    with weave.disabled():
        assert torch.equal(run(family, model, inputs), before)


def one_step(family: Family, _: Path) -> None:
    """One step of AdamW with weight decay moves all of the newest expert and gates, and nothing else."""
    model, inputs = family.made(), family.drawn()
    weave = inject(model, family, "a")
    wake(weave)
    weave.add_expert("b")
    wake(weave)
    training = {id(parameter) for parameter in weave.trainable_parameters()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == training
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    with weave.record() as routing:
        output = family.read(model(**inputs))
    loss = output.square().mean() + prw.veteran_loss(routing, rho=0.9, alpha=1.0)
    loss.backward()
    optimiser.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {name for name, p in model.named_parameters() if id(p) in training}
    assert moved <= expected
    assert all(".prw_" in name and name.split(".prw_")[1].split(".")[0].endswith("1") for name in expected)
    assert moved == expected, f"never trained: {sorted(expected - moved)[:4]}"


def saving(family: Family, folder: Path) -> None:
    """A pool that was saved and loaded into a fresh model gives the same output, bit for bit."""
    model, inputs = family.made(), family.drawn()
    weave = inject(model, family, "a", "b")
    wake(weave)
    weave.save_pretrained(folder)
    again = family.made()
    prw.load(again, folder)
    assert torch.equal(run(family, again, inputs), run(family, model, inputs))


def ejecting(family: Family, _: Path) -> None:
    """After eject every module is the very one that was there, and so is the output; what trained trains."""
    model, inputs = family.made().requires_grad_(True), family.drawn()
    before, modules = run(family, model, inputs), dict(model.named_modules())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    weave = inject(model, family, "a")
    wake(weave)
    weave.eject()
    after = dict(model.named_modules())
    assert after.keys() == modules.keys()
    assert all(after[name] is module for name, module in modules.items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert torch.equal(run(family, model, inputs), before)


def batch_mates(family: Family, _: Path) -> None:
    """What the first sample gets does not depend on the second one."""
    model, inputs, others = family.made(), family.drawn(), family.drawn(seed=2)
    wake(inject(model, family, "a", "b"))
    mixed = {name: with_mate(value, others[name]) for name, value in inputs.items()}
    first, again = run(family, model, inputs)[0], run(family, model, mixed)[0]
    if family.name == "CLIP":  # a table of every text against every picture
        first, again = first[0], again[0]
    assert torch.allclose(again, first, **CLOSE)


def with_mate(value: Any, other: Any) -> Any:
    """Take the second sample from other inputs."""
    if isinstance(value, dict):
        return {name: with_mate(part, other[name]) for name, part in value.items()}
    if isinstance(value, list):
        return [value[0], *other[1:]] if isinstance(value[0], Tensor) else value
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == BATCH:
        return torch.cat([value[:1], other[1:]])
    return value


def causality(family: Family, _: Path) -> None:
    """A later token changes nothing before it."""
    model, inputs = family.made(), family.drawn()
    wake(inject(model, family, "a", "b"))
    before = run(family, model, inputs)
    ids = inputs["input_ids"].clone()
    ids[:, -1] = (ids[:, -1] + 1) % 30 + 3
    after = run(family, model, {"input_ids": ids})
    assert torch.allclose(after[:, :-1], before[:, :-1], **CLOSE)
    assert not torch.allclose(after[:, -1], before[:, -1], **CLOSE)


def cached_generation(family: Family, _: Path) -> None:
    """Token by token with the cache gives what the full forward gives."""
    model, inputs = family.made(), family.drawn()
    wake(inject(model, family, "a", "b"))
    ids, cache, steps = inputs["input_ids"], None, []
    full = run(family, model, {"input_ids": ids})
    with torch.no_grad():
        for position in range(ids.shape[1]):
            output = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    assert cache is not None
    assert torch.allclose(torch.cat(steps, dim=1), full, rtol=1e-3, atol=1e-4)


def query_rows(family: Family, _: Path) -> None:
    """Of a fused projection only the rows of keys and values change; the others keep their bits."""
    model = family.made()
    wake(inject(model, family, "a"))
    seen = 0
    for layer in layers(model).values():
        slices = layer.slices_of("default")
        if "" in slices or isinstance(layer, PrwAttention):
            continue
        hidden = torch.randn(2, 3, layer.in_features)
        with torch.no_grad():
            changed = layer(hidden) != layer(hidden, routed=False)
        adapted = torch.zeros(layer.out_features, dtype=torch.bool)
        adapted[torch.cat([one.indices() for one in slices.values()])] = True
        assert not changed[..., ~adapted].any()
        assert changed.flatten(0, 1).any(dim=0)[adapted].all()
        seen += 1
    assert seen


def true_layout(family: Family, _: Path) -> None:
    """The rows are what they are said to be.

    Without values, queries and keys have no effect; without keys, queries have none.
    """
    model, inputs = family.made(), family.drawn()
    inject(model, family, "a")
    with weights_kept(model):
        blank(model, "v")
        empty = run(family, model, inputs)
        scramble(model, "k")
        scramble(model, "q")
        assert torch.allclose(run(family, model, inputs), empty, **CLOSE)
    if family.own_keys:
        with weights_kept(model):
            before = run(family, model, inputs)
            blank(model, "k")
            empty = run(family, model, inputs)
            scramble(model, "q")
            assert torch.allclose(run(family, model, inputs), empty, **CLOSE)
            assert not torch.allclose(empty, before, rtol=1e-6, atol=1e-7)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    model.load_state_dict(kept)


def rows_of(layer: PrwLinear, letter: str) -> Tensor | None:
    """Give the rows of a letter; those of queries are all that come before keys and values in a group."""
    rows: dict[str, OutputSlice] = {
        k: one for k, one in layer.slices_of("default").items() if one is not None
    }
    if letter != "q":
        return rows[letter].indices() if letter in rows else None
    first = min((part.start for part in rows.values()), default=0)
    return next(iter(rows.values()))._replace(start=0, stop=first).indices() if first else None


def touch(model: nn.Module, letter: str, change: Callable[[Tensor], Tensor]) -> None:
    for layer in layers(model).values():
        rows = rows_of(layer, letter)
        if rows is None:
            continue
        base = layer.get_base_layer()
        attention = isinstance(layer, PrwAttention)
        weight, bias = (base.in_proj_weight, base.in_proj_bias) if attention else (base.weight, base.bias)
        across = weight.T if type(base).__name__ == "Conv1D" else weight
        with torch.no_grad():
            across[rows] = change(across[rows])
            if bias is not None:
                bias[rows] = change(bias[rows])


def blank(model: nn.Module, letter: str) -> None:
    touch(model, letter, torch.zeros_like)


def scramble(model: nn.Module, letter: str) -> None:
    touch(model, letter, torch.randn_like)


CHECKS: dict[str, Callable[[Family, Path], None]] = {
    "identity": identity,
    "one step": one_step,
    "save, load": saving,
    "eject": ejecting,
    "batch mates": batch_mates,
    "causality": causality,
    "cached generation": cached_generation,
    "query rows": query_rows,
    "true layout": true_layout,
}
"""Every check by the name that the page gives it."""


def checks_of(family: Family, model: nn.Module | None = None) -> list[str]:
    """List the checks that a family is asked.

    Args:
        family: The family.
        model: A model of it that has a pool; None makes one.
    """
    if model is None:
        model = family.made()
        inject(model, family, "a")
    fused = [layer for layer in layers(model).values() if "" not in layer.slices_of("default")]
    asked = ["identity", "one step", "save, load", "eject", "batch mates"]
    asked += ["causality", "cached generation"] if family.causal else []
    asked += ["query rows"] if any(not isinstance(layer, PrwAttention) for layer in fused) else []
    return asked + (["true layout"] if fused and family.alone else [])
