"""What trains beside a pool: the optimiser gets it, and a changed head is named when a stage is recalled."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import BertConfig, BertForSequenceClassification

import prw
from prw.tuner import injection as module

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
HEAD = ["classifier.weight", "classifier.bias"]


@pytest.fixture
def pair():
    """A classifier whose head was unfrozen, and its pool."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **TINY)).train()
    weave = prw.inject(model, rank=2, experts=["a"])
    model.classifier.requires_grad_(True)
    return model, weave


def train(model, weave):
    tokens, labels = torch.randint(40, (4, 6)), torch.randint(3, (4,))
    optimiser = torch.optim.AdamW(weave.trainable_parameters(), lr=1e-2)
    model(input_ids=tokens, labels=labels).loss.backward()
    optimiser.step()


def test_an_unfrozen_head_is_among_what_the_optimiser_gets_once(pair):
    model, weave = pair
    got = [id(parameter) for parameter in weave.trainable_parameters()]
    assert got == [id(p) for p in model.parameters() if p.requires_grad and id(p) in got]
    assert len(set(got)) == len(got) == sum(p.requires_grad for p in model.parameters())
    before = model.classifier.weight.clone()
    train(model, weave)
    assert not torch.equal(model.classifier.weight, before)
    weave.freeze()
    assert [
        name for name, p in model.named_parameters() if any(p is q for q in weave.trainable_parameters())
    ] == HEAD


def test_modules_to_save_are_among_it_and_the_frozen_original_is_not():
    model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **TINY))
    model = get_peft_model(model, prw.PrwConfig(rank=2, experts=["a"], modules_to_save=["classifier"]))
    weave = prw.Weave(model)
    got = {id(parameter) for parameter in weave.trainable_parameters()}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in got}
    assert {name for name in named if "prw_" not in name} == {
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.modules_to_save.default.bias",
    }


def test_what_other_adapters_train_is_theirs(pair):
    model, weave = pair
    other = prw.inject(model, rank=2, experts=["b"], adapter="other")
    model.classifier.requires_grad_(True)
    ours, theirs = ({id(p) for p in one.trainable_parameters()} for one in (weave, other))
    assert {id(p) for p in model.classifier.parameters()} == ours & theirs


def test_a_stage_is_not_recalled_in_silence_where_the_head_has_changed(pair, recwarn):
    model, weave = pair
    train(model, weave)
    with weave.as_of("a"):
        pass  # it still trains, and is what it is
    weave.add_expert("b")
    with weave.as_of("a"):
        pass  # nothing has changed yet
    train(model, weave)
    assert not recwarn
    named = r"2 parameters beside it .*\(classifier.bias, classifier.weight\)"
    with pytest.warns(UserWarning, match=named), weave.as_of("a"):
        pass


def test_a_head_that_is_put_back_is_that_stages_model(pair):
    model, weave = pair
    train(model, weave)
    weave.freeze()
    head = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    tokens = torch.randint(40, (2, 6))
    expected = model.eval()(tokens).logits
    weave.add_expert("b")
    train(model.train(), weave)
    model.classifier.load_state_dict(head)
    with weave.as_of("a"):
        assert torch.equal(model.eval()(tokens).logits, expected)


def test_a_head_that_was_unfrozen_later_is_named_too_also_after_it_was_frozen_again(pair):
    model, weave = pair
    model.classifier.requires_grad_(False)
    weave.add_expert("b")
    model.classifier.requires_grad_(True)
    train(model, weave)
    weave.freeze()
    model.classifier.requires_grad_(False)
    with pytest.warns(UserWarning, match="classifier"), weave.as_of("a"):
        pass
    with weave.as_of("b"):
        pass


def test_the_folder_remembers_and_saving_says_what_is_left_out(pair, tmp_path):
    model, weave = pair
    train(model, weave)
    weave.add_expert("b")
    weave.rename_expert("a", "first")
    with pytest.warns(UserWarning, match=r"2 parameters train beside the pool .* not in"):
        weave.save_pretrained(tmp_path)
    fresh = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **TINY))
    again = prw.load(fresh, tmp_path)
    with pytest.warns(UserWarning, match="classifier"), again.as_of("first"):
        pass
    fresh.classifier.load_state_dict(model.classifier.state_dict())
    with again.as_of("first"):
        pass
    again.remove_expert("first")
    assert again.config.trained_beside == {}


def test_a_pool_that_trains_alone_notes_nothing(pair):
    model, weave = pair
    model.classifier.requires_grad_(False)
    weave.add_expert("b")
    train(model, weave)
    weave.freeze()
    assert weave.config.trained_beside == {}
    with weave.as_of("a"):
        pass


def trained_then_grown(pair):
    """Train the head with expert a, end its stage, and leave both frozen."""
    model, weave = pair
    train(model, weave)
    weave.add_expert("b")
    model.classifier.requires_grad_(False)
    return model, weave


def test_a_base_whose_blocks_were_compiled_since_has_not_changed(pair, recwarn):
    model, weave = pair
    model.bert.encoder.layer[0].intermediate.requires_grad_(True)
    model, weave = trained_then_grown((model, weave))
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0], backend="eager")
    with weave.as_of("a"):
        pass
    assert not recwarn
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight.add_(1.0)
    with pytest.warns(UserWarning, match="intermediate.dense.weight"), weave.as_of("a"):
        pass


def test_a_lora_around_an_unfrozen_projection_does_not_change_it(pair, recwarn):
    model, weave = pair
    model.bert.encoder.layer[0].attention.self.query.requires_grad_(True)
    model, weave = trained_then_grown((model, weave))
    with pytest.warns(UserWarning, match="Already found"):
        inject_adapter_in_model(LoraConfig(target_modules=["query"]), model, "lora")
    with weave.as_of("a"):
        pass
    assert not recwarn


def test_a_head_that_is_offloaded_is_not_known_to_be_the_same(pair):
    model, weave = trained_then_grown(pair)
    model.classifier.to("meta")
    with pytest.warns(UserWarning, match=r"2 parameters beside it .*classifier.bias"), weave.as_of("a"):
        pass
    model.classifier.requires_grad_(True)
    weave.freeze()  # notes what it can
    with pytest.warns(UserWarning, match="classifier.bias"), weave.as_of("b"):
        pass


def test_recalling_a_stage_costs_one_walk_where_nothing_trained_beside_and_sums_up_once(pair, monkeypatch):
    model, weave = pair
    model.classifier.requires_grad_(False)
    weave.add_expert("b")
    walks, sums = [], []
    walk, crc = module.base_parameters, module.crc
    monkeypatch.setattr(module, "base_parameters", lambda *a, **k: walks.append(a) or walk(*a, **k))
    monkeypatch.setattr(module, "crc", lambda parameter: sums.append(parameter) or crc(parameter))
    with weave.as_of("a"):
        assert len(walks) == 1 and not sums
    model.classifier.requires_grad_(True)
    weave.freeze()
    for _ in range(3):
        with weave.as_of("b"):
            assert len(sums) == 2
    train(model, weave)
    with pytest.warns(UserWarning, match="classifier"), weave.as_of("b"):
        assert len(sums) == 4


def test_a_write_through_data_is_seen_once_its_version_is_counted(pair):
    model, weave = pair
    weave.freeze()
    weave.add_expert("b")
    with weave.as_of("a"):
        pass
    weight = model.classifier.weight
    weight.data.mul_(2)
    torch.autograd.graph.increment_version(weight)
    with pytest.warns(UserWarning, match="classifier.weight"), weave.as_of("a"):
        pass
