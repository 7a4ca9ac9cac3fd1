"""Sites that a training forward does not reach: named once, never an error, and nothing is added for them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prw


class Attention(nn.Module):
    """An attention of its own, without heads."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden):
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        return hidden + (query @ key.transpose(-1, -2)).softmax(-1) @ value


class ReadsPast(Attention):
    """One that calls its projections or multiplies with their weights, which no reading of the code tells."""

    def forward(self, hidden):
        if hidden.shape[-1] == 8:
            key = F.linear(hidden, self.k_proj.weight, self.k_proj.bias)
            value = F.linear(hidden, self.v_proj.weight)
        else:
            key, value = self.k_proj(hidden), self.v_proj(hidden)
        return hidden + (self.q_proj(hidden) @ key.transpose(-1, -2)).softmax(-1) @ value


class Towers(nn.Module):
    """A text tower that always runs, and a picture tower that runs where there are pictures."""

    def __init__(self, attention=Attention):
        super().__init__()
        self.text = nn.ModuleList(attention() for _ in range(2))
        self.vision = nn.ModuleList(Attention() for _ in range(2))
        self.skipped = set()

    def forward(self, hidden, pictures=None):
        for index, block in enumerate(self.vision if pictures is not None else []):
            if index in self.skipped:
                continue
            hidden = hidden + block(pictures)
        for block in self.text:
            hidden = block(hidden)
        return {"loss": hidden.square().mean()}


@pytest.fixture
def batch():
    return torch.randn(2, 5, 8)


def vision_pool(**options):
    model = Towers().train()
    return model, prw.inject(model, exclude="text", rank=2, experts=["a", "b"], **options)


def veteran(routing, mask=None):
    return prw.veteran_loss(routing, rho=0.1, alpha=1.0, mask=mask)


def test_a_batch_without_pictures_adds_nothing_and_is_named_once(batch):
    model, weave = vision_pool()
    own = model(batch)["loss"]
    with weave.add_to_loss(veteran):
        with pytest.warns(UserWarning, match=r"reached 0 of 2 sites.* at vision.0, vision.1 neither acted"):
            assert torch.equal(model(batch)["loss"], own)
        assert torch.equal(model(batch)["loss"], own), "and no warning any more"
        assert not torch.equal(model(batch, batch)["loss"], model(batch)["loss"])


def test_a_site_that_was_reached_once_is_never_named(batch):
    model, weave = vision_pool()
    with weave.add_to_loss(veteran):
        model(batch, batch)
        model(batch)
    with weave.record():
        model(batch)


def test_an_adapter_that_is_off_adds_nothing_and_is_not_named(batch):
    model, weave = vision_pool()
    prw.inject(model, exclude="vision", rank=2, experts=["c"], adapter="other")
    own = model(batch, batch)["loss"].detach()
    layers = [module for module in model.modules() if hasattr(module, "enable_adapters")]
    with weave.add_to_loss(veteran):
        for layer in layers:
            layer.enable_adapters(False)
        assert torch.equal(model(batch, batch)["loss"], own)
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(["other"])
        assert torch.equal(model(batch, batch)["loss"], own)
        with weave.disabled():
            assert torch.equal(model(batch, batch)["loss"], own)


def test_an_empty_pool_still_says_that_there_is_nothing_to_route(batch):
    model = Towers().train()
    weave = prw.inject(model, rank=2)
    with weave.add_to_loss(veteran), pytest.raises(prw.RoutingError, match="at least one expert"):
        model(batch, batch)


@pytest.mark.parametrize("how", ["record", "add_to_loss"])
def test_a_block_that_reads_the_weights_past_its_experts_is_named(batch, how):
    model = Towers(ReadsPast).train()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    block = weave.record() if how == "record" else weave.add_to_loss(veteran)
    named = r"at text.0, text.1 have no effect: .*text.0.k_proj, text.0.v_proj"
    with pytest.warns(UserWarning, match=named), block:
        model(batch, batch)
    with weave.record():
        model(batch, batch)


def test_it_is_named_also_where_no_site_at_all_is_reached(batch):
    model = Towers(ReadsPast).train()
    weave = prw.inject(model, rank=2, experts=["a", "b"], exclude="vision")
    with pytest.warns(UserWarning, match="have no effect"), weave.record():
        model(batch)


def test_reading_a_weight_and_calling_its_projection_is_no_fault(batch):
    model, weave = vision_pool()
    model.register_forward_pre_hook(lambda model, args: model.vision[0].k_proj.weight.dtype and None)
    with weave.record():
        model(batch, batch)


def test_evaluation_names_nothing_and_lets_training_name_it_later(batch):
    model = Towers().eval()
    weave = prw.inject(model, rank=2, experts=["a", "b"])
    with weave.record():
        model(batch)
    model.train()
    named = r"reached 2 of 4 sites.* at vision.0, vision.1 neither"
    with pytest.warns(UserWarning, match=named), weave.record():
        model(batch)


def test_skipped_layers_are_named_at_most_once(batch):
    model, weave = vision_pool()
    with weave.add_to_loss(veteran), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for skipped in ({0}, {1}, {0, 1}, set()):
            model.skipped = skipped
            model(batch, batch)
    assert ["at vision.0 neither" in str(one.message) for one in caught] == [True]


def test_a_forward_that_failed_names_nothing(batch):
    model, weave = vision_pool()
    with weave.add_to_loss(veteran), pytest.raises(TypeError):
        model(None)
    with pytest.raises(TypeError), weave.record():
        model(None)


class HalfReadPast(Attention):
    """One that calls its values and multiplies with the weight of its keys, under another name."""

    def forward(self, hidden):
        keys = self.k_proj
        key, value = F.linear(hidden, keys.weight, keys.bias), self.v_proj(hidden)
        return hidden + (self.q_proj(hidden) @ key.transpose(-1, -2)).softmax(-1) @ value


def test_keys_that_are_read_past_are_named_where_values_are_called(batch):
    model = Towers(HalfReadPast).train()
    weave = prw.inject(model, exclude="vision", rank=2, experts=["a", "b"])
    with (
        pytest.warns(UserWarning, match=r"no effect: their blocks read .* of text\.0\.k_proj and did"),
        weave.record(),
    ):
        model(batch)
    with warnings.catch_warnings(), weave.record():
        warnings.simplefilter("error")
        model(batch)


def test_no_forward_walks_over_the_model_to_find_the_sites(batch, monkeypatch):
    model = Towers()
    weave = prw.inject(model, rank=2, experts=["a"])
    model.eval()
    walked, walk = [], nn.Module.named_modules

    def noted(module, *args, **kwargs):
        walked.append(module)
        return walk(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", noted)
    with weave.record():
        model(batch)  # in evaluation, where the picture tower stays unsettled
    monkeypatch.undo()
    assert not weave.pool.all_settled
    assert not any(module is model.vision for module in walked), "the handle looks for the first layer only"


def test_a_copy_of_a_model_has_sites_of_its_own(batch):
    model = Towers()
    weave = prw.inject(model, rank=2, experts=["a"])
    twin = prw.Weave(copy.deepcopy(model))
    assert [site.name for site in twin.pool.sites] == [site.name for site in weave.pool.sites]
    assert len(weave.pool.sites) == 4
    assert not {id(site) for site in twin.pool.sites} & {id(site) for site in weave.pool.sites}
