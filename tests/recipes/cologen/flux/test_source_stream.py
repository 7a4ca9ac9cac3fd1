"""Two-step attention on stock FLUX.1 and FLUX.2; experts are played by a map on routed tokens."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux import (
    FluxBase,
    FluxModel,
    SourceKV,
    has_source_stream,
    install_source_stream,
    parallel_attention,
    remove_source_stream,
    source_stream,
)
from recipes.cologen.flux.source_stream import KeyValue, SourceTokens, flux_attentions

Build = Callable[..., FluxModel]
Inputs = Callable[..., tuple]


def with_expert(module: nn.Linear, hidden: Tensor, routed: bool) -> Tensor:
    """Play a pool of experts: keys and values of routed tokens get something that plain ones do not."""
    output = module(hidden)
    if not routed:
        return output
    plus = torch.tanh(hidden.flip(-1))
    if output.shape[-1] == hidden.shape[-1]:
        return output + plus
    query, key, value, rest = output.split(
        [*3 * [hidden.shape[-1]], output.shape[-1] - 3 * hidden.shape[-1]], -1
    )
    return torch.cat([query, key + plus, value + plus, rest], dim=-1)


def play_experts(monkeypatch: pytest.MonkeyPatch, project: Callable[..., Tensor] = with_expert) -> None:
    """Let every processor project by this function."""
    for module in (source_stream, parallel_attention):
        monkeypatch.setattr(module, "project", project)


class MaskedOracle:
    """One attention over the joined sequence, with a mask under which source rows see source columns only."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        source: SourceTokens | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        length, num_source = hidden_states.shape[1], source.num_in_sequence
        routed = torch.arange(length) >= length - num_source
        plus = routed[:, None] * torch.tanh(hidden_states.flip(-1))
        fused = getattr(attn, "to_qkv_mlp_proj", None)
        if fused is None:
            query, key, value = (linear(hidden_states) for linear in (attn.to_q, attn.to_k, attn.to_v))
        else:
            query, key, value = fused(hidden_states)[..., : 3 * attn.inner_dim].chunk(3, dim=-1)
        key, value = key + plus, value + plus
        heads = [x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value)]
        heads[0], heads[1] = attn.norm_q(heads[0]), attn.norm_k(heads[1])
        if encoder_hidden_states is not None:
            added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text = [linear(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for linear in added]
            text[0], text[1] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
            heads = [torch.cat([t, h], dim=1) for t, h in zip(text, heads, strict=True)]
        heads[:2] = [apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in heads[:2]]
        is_source = torch.arange(heads[0].shape[1]) >= heads[0].shape[1] - num_source
        mask = ~is_source[:, None] | is_source[None, :]
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads), attn_mask=mask)
        out = out.transpose(1, 2).flatten(2)
        if fused is not None:
            mlp = attn.mlp_act_fn(fused(hidden_states)[..., 3 * attn.inner_dim :])
            return attn.to_out(torch.cat([out, mlp], dim=-1))
        if encoder_hidden_states is None:
            return out
        num_text = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, num_text:]), attn.to_add_out(out[:, :num_text])


class ParallelOracle(MaskedOracle):
    """The same for FLUX.2's single blocks, which hand over no text of its own."""

    def __call__(
        self, attn, hidden_states, attention_mask=None, image_rotary_emb=None, source=None
    ) -> Tensor:
        return super().__call__(attn, hidden_states, image_rotary_emb=image_rotary_emb, source=source)


def run_beside(model: FluxBase, noise, timestep, text, source, write: SourceKV | None = None) -> Tensor:
    """Run noise and source in one pass; give the outputs of both."""
    ids = torch.cat([model.position_ids(noise), model.position_ids(source, source=0)])
    tokens = torch.cat([noise.tokens, source.tokens], dim=1)
    use = SourceTokens(source.tokens.shape[1], write=write)
    return model.run(tokens, ids, timestep, text, None, use)


@pytest.mark.parametrize("blocks", [(2, 2), (1, 0), (0, 1)], ids=["both", "double", "single"])
def test_two_steps_equal_one_masked_attention(
    either: Build, inputs: Inputs, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    play_experts(monkeypatch)
    model = either(double_blocks=blocks[0], single_blocks=blocks[1])
    model.transformer.double()
    args = inputs(model)
    args[0].tokens.requires_grad_()
    args[3].tokens.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        output = run_beside(model, *args)
        return output, *torch.autograd.grad(output.square().sum(), [args[0].tokens, args[3].tokens])

    two_steps = run()
    for attn in flux_attentions(model.transformer).values():
        fused = hasattr(attn, "to_qkv_mlp_proj")
        attn.set_processor(ParallelOracle() if fused else MaskedOracle())
    torch.testing.assert_close(two_steps, run(), rtol=1e-8, atol=1e-8)


def test_only_source_tokens_are_routed_and_k_and_v_get_one_tensor(
    build: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []
    seen: list[Tensor] = []

    def spy(module: nn.Linear, hidden: Tensor, routed: bool) -> Tensor:
        calls.append((hidden.shape[1], routed))
        seen.append(hidden)
        return module(hidden)

    play_experts(monkeypatch, spy)
    model = build(double_blocks=1, single_blocks=1)
    run_beside(model, *inputs(model))
    noise, source, text = (6, False), (8, True), (8, False)
    beside_text = (8 + 6, False)
    assert calls == [noise, source, noise, source, text, text] + 2 * [beside_text, source]
    assert seen[1] is seen[3] and seen[7] is seen[9]


@pytest.mark.usefixtures("other_rounding")
def test_without_a_source_nothing_is_routed_and_stock_flux_comes_out_bit_by_bit(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_experts(monkeypatch)
    model = either()
    model.transformer.requires_grad_(False)  # so that strided and contiguous inputs differ
    noise, timestep, text, _ = inputs(model)
    ours = model.velocity(noise, timestep, text)
    remove_source_stream(model.transformer)
    assert torch.equal(ours, model.velocity(noise, timestep, text))


def test_a_source_and_its_experts_change_the_velocity(
    either: Build, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = either()
    args = inputs(model)
    alone, plain = model.velocity(*args[:3]), model.velocity(*args)
    play_experts(monkeypatch)
    routed = model.velocity(*args)
    assert (plain - alone).abs().max() > 1e-3
    assert (routed - plain).abs().max() > 1e-3


@pytest.mark.parametrize("changed", ["noise", "text", "both"])
def test_noise_and_text_tokens_never_reach_the_source_stream(
    either: Build, inputs: Inputs, changed: str
) -> None:
    """Timestep and pooled text do reach it, through the modulation that all streams share."""
    model = either()
    noise, timestep, text, source = inputs(model)
    before, after = SourceKV(), SourceKV()
    first = run_beside(model, noise, timestep, text, source, before)
    if changed != "text":
        noise = noise.with_tokens(torch.randn_like(noise.tokens))
    if changed != "noise":
        text = type(text)(torch.randn_like(text.embeds), text.pooled)
    second = run_beside(model, noise, timestep, text, source, after)
    assert before.sites == after.sites == tuple(flux_attentions(model.transformer))
    for site in before.sites:
        for old, new in zip(before.read(site), after.read(site), strict=True):
            assert torch.equal(old, new)
    assert torch.equal(first[:, 6:], second[:, 6:])
    assert not torch.allclose(first[:, :6], second[:, :6])


def test_timestep_and_pooled_text_reach_the_source_stream(build: Build, inputs: Inputs) -> None:
    model = build()
    noise, timestep, text, source = inputs(model)
    site = next(iter(flux_attentions(model.transformer)))

    def key(timestep: Tensor, pooled: Tensor) -> Tensor:
        kv = SourceKV()
        run_beside(model, noise, timestep, type(text)(text.embeds, pooled), source, kv)
        return kv.read(site).key

    reference = key(timestep, text.pooled)
    assert not torch.allclose(reference, key(timestep / 2, text.pooled))
    assert not torch.allclose(reference, key(timestep, -text.pooled))


def test_removing_gives_back_the_very_processors(build: Build) -> None:
    transformer = build().transformer
    remove_source_stream(transformer)
    mine = [FluxAttnProcessor() for _ in flux_attentions(transformer)]
    for attn, processor in zip(flux_attentions(transformer).values(), mine, strict=True):
        attn.set_processor(processor)
    weights = list(transformer.state_dict())
    install_source_stream(transformer)
    assert has_source_stream(transformer)
    assert list(transformer.state_dict()) == weights
    remove_source_stream(transformer)
    assert not has_source_stream(transformer)
    for attn, processor in zip(flux_attentions(transformer).values(), mine, strict=True):
        assert attn.processor is processor


def test_a_backend_chosen_before_is_kept(either: Build) -> None:
    transformer = either().transformer
    remove_source_stream(transformer)
    with attention_backend("native"):  # diffusers sets it for every model of the process; this puts it back
        transformer.set_attention_backend("_native_math")
    install_source_stream(transformer)
    backends = {str(attn.processor._attention_backend) for attn in flux_attentions(transformer).values()}
    assert len(backends) == 1 and "math" in backends.pop().lower()


def test_a_foreign_processor_is_named_and_nothing_changes(either: Build) -> None:
    transformer = either().transformer
    remove_source_stream(transformer)
    before = [attn.processor for attn in flux_attentions(transformer).values()]
    transformer.single_transformer_blocks[1].attn.set_processor(MaskedOracle())
    with pytest.raises(SourceStreamError, match=r"single_transformer_blocks\.1\.attn has a MaskedOracle"):
        install_source_stream(transformer)
    kept = [attn.processor for attn in flux_attentions(transformer).values()][:3]
    assert all(old is new for old, new in zip(before, kept, strict=False))


def test_installing_twice_and_removing_twice_are_refused(either: Build) -> None:
    transformer = either().transformer
    with pytest.raises(SourceStreamError, match="installed already"):
        install_source_stream(transformer)
    remove_source_stream(transformer)
    with pytest.raises(SourceStreamError, match="never installed"):
        remove_source_stream(transformer)


def test_fused_projections_are_refused_before_and_after_installing(either: Build, inputs: Inputs) -> None:
    model = either()
    remove_source_stream(model.transformer)
    model.transformer.fuse_qkv_projections()
    with pytest.raises(SourceStreamError, match="unfuse_qkv_projections"):
        install_source_stream(model.transformer)
    model.transformer.unfuse_qkv_projections()
    install_source_stream(model.transformer)
    model.transformer.fuse_qkv_projections()
    with pytest.raises(SourceStreamError, match="unfuse_qkv_projections"):
        model.velocity(*inputs(model))


def test_a_mask_or_context_parallelism_beside_a_source_is_refused(either: Build) -> None:
    attn = either().transformer.single_transformer_blocks[0].attn
    hidden = torch.randn(1, 4, 16)
    with pytest.raises(SourceStreamError, match="attention_mask must be None"):
        attn(hidden, attention_mask=torch.ones(4, 4, dtype=torch.bool), source=SourceTokens(2))
    attn.processor._parallel_config = object()
    with pytest.raises(SourceStreamError, match="context parallelism"):
        attn(hidden, source=SourceTokens(2))


def test_source_kv_keeps_the_first_write_and_names_a_missing_site() -> None:
    kv, first = SourceKV(), KeyValue(torch.zeros(1), torch.zeros(1))
    kv.write("a", first)
    kv.write("a", KeyValue(torch.ones(1), torch.ones(1)))
    assert kv.read("a") is first and len(kv) == 1
    with pytest.raises(SourceStreamError, match=r"'b'; this SourceKV holds \['a'\]"):
        kv.read("b")
