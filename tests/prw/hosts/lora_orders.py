"""A diffusers pipeline on which a pool and LoRAs come and go in any order, and what it must then give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import prw

LORAS = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.just(("pool", None)),
        st.tuples(st.just("lora"), st.sampled_from(LORAS)),
        st.just(("unload", None)),
        st.tuples(st.just("fuse"), st.sampled_from([1.0, 0.5])),
    ),
    min_size=1,
    max_size=7,
)
"""What is done to a pipeline: each of pool and LoRAs comes if it is not there, and goes if it is."""


def lora_of(model: nn.Module, paths: Sequence[str], seed: int, rank: int = 2) -> dict[str, Tensor]:
    """A LoRA with random weights, as `load_lora_weights` takes it."""
    numbers, weights = torch.Generator().manual_seed(seed), {}
    for path in paths:
        projection: Any = model.get_submodule(path)
        down = torch.randn(rank, projection.in_features, generator=numbers)
        up = torch.randn(projection.out_features, rank, generator=numbers)
        weights[f"transformer.{path}.lora_A.weight"] = down / 4
        weights[f"transformer.{path}.lora_B.weight"] = up / 4
    return weights


class Orders:
    """Expects of every projection: base, plus what the pool adds, plus what each LoRA adds by its strength.

    Args:
        pipe: The pipeline, with a bare transformer.
        add_pool: Puts the same pool into a model each time.
        covered: Paths of the projections of each LoRA.
        pool_is_named: Whether `set_adapters` must name the pool, as in stock pipelines.
    """

    def __init__(
        self,
        pipe: Any,
        add_pool: Callable[[nn.Module], prw.Weave],
        covered: dict[str, list[str]],
        pool_is_named: bool,
    ) -> None:
        self.pipe, self.model, self.add_pool = pipe, pipe.transformer.eval(), add_pool
        self.weave: prw.Weave | None = None
        self.pool_is_named = pool_is_named
        self.loras = {
            name: lora_of(self.model, paths, seed) for seed, (name, paths) in enumerate(covered.items())
        }
        self.strengths = {name: 0.5 + 0.25 * place for place, name in enumerate(covered)}
        self.loaded: list[str] = []
        paths = sorted({path for some in covered.values() for path in some})
        projections: dict[str, Any] = {path: self.model.get_submodule(path) for path in paths}
        widths = {projection.in_features for projection in projections.values()}
        inputs = {width: torch.randn(1, 5, width) for width in widths}
        self.hidden = {path: inputs[projection.in_features] for path, projection in projections.items()}
        self.base = self.outputs()
        weave = add_pool(self.model)
        self.pool = {path: output - self.base[path] for path, output in self.outputs().items()}
        weave.eject()
        assert max(float(delta.abs().max()) for delta in self.pool.values()) > 1e-2

    @torch.no_grad()
    def outputs(self) -> dict[str, Tensor]:
        """What every projection gives."""
        return {path: self.model.get_submodule(path)(hidden) for path, hidden in self.hidden.items()}

    def expected(self, path: str, scale: float) -> Tensor:
        """What a projection must give."""
        total = self.base[path] + (self.pool[path] if self.weave is not None else 0)
        for name in self.loaded:
            down = self.loras[name].get(f"transformer.{path}.lora_A.weight")
            if down is not None:
                up = self.loras[name][f"transformer.{path}.lora_B.weight"]
                total = total + scale * self.strengths[name] * self.hidden[path] @ down.T @ up.T
        return total

    def check(self, scale: float = 1.0) -> None:
        """Compare every projection, and that diffusers and prw agree on what is there."""
        for path, output in self.outputs().items():
            torch.testing.assert_close(output, self.expected(path, scale), atol=1e-5, rtol=1e-5)
        pool = [] if self.weave is None else [self.weave.adapter]
        there = getattr(self.model, "peft_config", {})
        assert sorted(there) == sorted([*self.loaded, *pool])

    def take(self, step: tuple[str, Any]) -> None:
        """Take one step, give every LoRA its strength, and check."""
        kind, what = step
        {"pool": self.toggle_pool, "lora": self.toggle_lora, "unload": self.unload, "fuse": self.toggle_fuse}[
            kind
        ](what)
        self.settle()
        self.check()

    def settle(self) -> None:
        if self.loaded:
            strengths = [self.strengths[name] for name in self.loaded]
            if self.pool_is_named and self.weave is not None:
                self.pipe.set_adapters([*self.loaded, self.weave.adapter], [*strengths, 1.0])
            else:
                self.pipe.set_adapters(list(self.loaded), strengths)

    def toggle_pool(self, _: Any) -> None:
        if self.weave is None:
            self.weave = self.add_pool(self.model)
        else:
            self.weave.eject()
            self.weave = None

    def toggle_lora(self, name: str) -> None:
        if name in self.loaded:
            self.pipe.delete_adapters(name)
            self.loaded.remove(name)
        else:
            self.pipe.load_lora_weights(dict(self.loras[name]), adapter_name=name)
            self.loaded.append(name)

    def unload(self, _: Any) -> None:
        if self.pool_is_named and self.weave is not None:
            return  # stock pipelines take the pool out too
        self.pipe.unload_lora_weights()
        self.loaded.clear()

    def toggle_fuse(self, scale: float) -> None:
        if self.loaded:
            names = list(self.loaded) if self.pool_is_named else None
            self.pipe.fuse_lora(lora_scale=scale, adapter_names=names)
            self.check(scale)
            self.pipe.unfuse_lora()
