"""Renaming and removing experts: gates, order, later stages, and folders saved before."""

import pytest
import torch

import prw

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def grown(make_plain, wake):
    """A pool of four, its input, and the folder-less base."""
    base = make_plain()
    weave = prw.inject(base, rank=3, experts=list(NAMES))
    wake(weave)
    base.eval()
    return weave, base, torch.randn(2, 5, 8)


def logits(weave, base, hidden):
    with weave.record() as routing:
        base(hidden)
    return routing.decisions[weave.sites[0].name][0].logits


def weights(base):
    return {name: p.detach().clone() for name, p in base.named_parameters() if ".prw_" in name}


def test_a_new_name_changes_nothing_else(grown, tmp_path):
    weave, base, hidden = grown
    before, trained = base(hidden), {n for n, p in base.named_parameters() if p.requires_grad}
    weave.rename_expert("b", "style")
    assert weave.experts == ("a", "style", "c", "d")
    assert torch.equal(base(hidden), before)
    assert {n for n, p in base.named_parameters() if p.requires_grad} == trained
    with weave.as_of("style"):
        assert not torch.equal(base(hidden), before)
    weave.save_pretrained(tmp_path)
    weave.eject()
    again = prw.load(base, tmp_path)
    assert again.experts == ("a", "style", "c", "d")
    assert torch.equal(base(hidden), before)


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("z", "y", prw.PoolError, "no expert 'z'; it has: a, b, c, d"),
        ("a", "b", prw.ConfigError, "already has an expert 'b'"),
        ("a", "", prw.ConfigError, "non-empty string"),
        ("a", "zero", prw.ConfigError, '"zero"'),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(grown, old, new, error, match):
    weave, _, _ = grown
    with pytest.raises(error, match=match):
        weave.rename_expert(old, new)
    assert weave.experts == NAMES


def test_a_folder_of_before_the_new_name_is_no_earlier_stage_but_loads_afresh(grown, tmp_path):
    weave, base, hidden = grown
    before = base(hidden)
    weave.save_pretrained(tmp_path)
    weave.rename_expert("a", "style")
    with pytest.raises(prw.StorageError, match="no earlier stage"):
        prw.load(base, tmp_path)
    weave.eject()
    assert prw.load(base, tmp_path).experts == NAMES
    assert torch.equal(base(hidden), before)


@pytest.mark.parametrize("position", range(4))
def test_removing_keeps_the_others_order_weights_and_logits(grown, position):
    weave, base, hidden = grown
    old, scored = weights(base), logits(weave, base, hidden)
    weave.remove_expert(NAMES[position])
    kept = [index for index in range(4) if index != position]
    assert weave.experts == tuple(NAMES[index] for index in kept)
    assert torch.equal(logits(weave, base, hidden), scored[..., kept])
    now = weights(base)
    for place, index in enumerate(kept):
        for part in ("A", "B", "gate", "noise"):
            moved = {n: w for n, w in now.items() if f".prw_{part}{place}." in n}
            assert moved
            for name, weight in moved.items():
                assert torch.equal(weight, old[name.replace(f"prw_{part}{place}.", f"prw_{part}{index}.")])
    assert not any("3.default" in name for name in now)
    training = {n for n, p in base.named_parameters() if p.requires_grad}
    assert len(training) == (0 if position == 3 else 12)
    assert all("2.default" in name for name in training)


def test_as_of_after_removing_from_the_middle(grown):
    """Earlier stages are untouched; a later one is its own model without the expert, bit for bit."""
    weave, base, hidden = grown
    outputs = {}
    for name in NAMES:
        with weave.as_of(name):
            outputs[name] = base(hidden)
    shortened = prw.inject(twin := _copy_of_base(base), rank=3, experts=["a", "b", "c"])
    theirs = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(theirs[name])
    shortened.remove_expert("b")
    weave.remove_expert("b")
    with weave.as_of("a"):
        assert torch.equal(base(hidden), outputs["a"])
    with weave.as_of("c"):
        assert torch.equal(base(hidden), twin.eval()(hidden))
        assert not torch.equal(base(hidden), outputs["c"])
    with pytest.raises(prw.PoolError, match="no expert 'b'"), weave.as_of("b"):
        pass


def _copy_of_base(base):
    made = type(base)()
    names = {name.replace(".base_layer", ""): p for name, p in base.named_parameters() if ".prw_" not in name}
    made.load_state_dict(names)
    return made


def test_folders_saved_before_a_removal(grown, tmp_path):
    weave, base, hidden = grown
    with weave.as_of("a"):
        alone = base(hidden)
    for name in ("d", "c", "b"):  # folders of the stages a, then a and b, ..., as training would leave them
        weave.save_pretrained(tmp_path / f"until {name}")
        weave.remove_expert(name)
    weave.save_pretrained(tmp_path / "until a")
    weave.eject()
    weave = prw.load(base, tmp_path / "until d")
    weave.remove_expert("b")
    prw.load(base, tmp_path / "until a")  # from before b was there: still an earlier stage
    with weave.as_of("a"):
        assert torch.equal(base(hidden), alone)
    with pytest.raises(prw.StorageError, match=r"saved pool \(a, b, c;.*no earlier stage"):
        prw.load(base, tmp_path / "until c")
    weave.eject()
    assert prw.load(base, tmp_path / "until c").experts == ("a", "b", "c")


def test_what_went_to_a_removed_expert_goes_to_the_next_likeliest(grown):
    weave, base, hidden = grown
    scored = logits(weave, base, hidden)
    weave.remove_expert("c")
    with weave.record() as routing:
        base(hidden)
    decision = routing.decisions[weave.sites[0].name][0]
    rest = scored[..., [0, 1, 3]].softmax(-1)
    assert torch.equal(decision.expert_ids, rest.argmax(-1))
    assert (decision.weights >= scored.softmax(-1)[..., [0, 1, 3]].amax(-1)).all()


def test_removing_or_merging_inside_a_block_is_refused(grown):
    weave, _, _ = grown
    for block in (weave.record, lambda: weave.as_of("b"), weave.disabled):
        with block(), pytest.raises(prw.PoolError, match=r"(?s)removing 'a' changes .*Leave the block first"):
            weave.remove_expert("a")
    with weave.as_of("a"), pytest.raises(prw.PoolError, match="merging"):
        weave.merge(as_of="a")
    assert weave.experts == NAMES


def test_after_eject_every_question_says_that_there_is_no_pool(grown, tmp_path):
    weave, _, _ = grown
    weave.eject()
    questions = (
        lambda: weave.config,
        lambda: weave.frozen,
        lambda: weave.experts,
        lambda: weave.sites,
        lambda: weave.summary(),
        lambda: weave.save_pretrained(tmp_path),
        lambda: weave.add_expert("e"),
    )
    for question in questions:
        with pytest.raises(prw.PoolError, match=r"prw\.inject"):
            question()


def test_inside_an_earlier_pool_there_is_no_later_expert(grown):
    weave, base, hidden = grown
    with weave.as_of("b"):
        earlier = base(hidden)
        with weave.as_of("a"):
            assert not torch.equal(base(hidden), earlier)
        with pytest.raises(prw.PoolError, match=r"that pool had no 'c' yet"), weave.as_of("c"):
            pass
        assert torch.equal(base(hidden), earlier)
