"""The part of an accumulated batch that a forward is, as transformers' Trainer counts it."""

import pytest
import torch
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

import prw
from prw.integrations.accumulation import SHIFTED, part_of_batch


def test_labels_are_shifted_where_transformers_shifts_them(make_host):
    model, labels = make_host("llama").model, torch.randint(0, 40, (2, 7))
    assert set(SHIFTED) == {kind for kind, loss in LOSS_MAPPING.items() if loss is ForCausalLMLoss}
    labels[0, :3] = -100
    kwargs = {"labels": labels, "num_items_in_batch": torch.tensor(20)}
    assert float(part_of_batch(model, kwargs)) == pytest.approx((4 + 6) / 20)
    assert float(part_of_batch(nn.Linear(1, 1), kwargs)) == pytest.approx((4 + 7) / 20)
    assert float(part_of_batch(model, {**kwargs, "shift_labels": labels})) == pytest.approx(11 / 20)
    assert part_of_batch(model, {"labels": labels}) is None
    with pytest.raises(prw.RoutingError, match="without labels"):
        part_of_batch(model, {"num_items_in_batch": 3})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_importing_prw_is_enough_for_the_weight(make_host):
    model = make_host("llama").model
    weave = prw.inject(model, rank=2, experts=["a", "b"], noise=False)
    labels = torch.randint(0, 40, (2, 7))
    batch = {"input_ids": labels, "labels": labels, "num_items_in_batch": torch.tensor(24)}
    own = model.train()(**batch).loss
    with weave.add_to_loss(lambda routing: torch.tensor(2.0)):
        assert torch.allclose(model(**batch).loss, own + 2.0 * 12 / 24)
