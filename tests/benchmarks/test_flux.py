"""Steps of a whole FLUX: LoRA and pools sit on the same modules, and a step trains the newest expert."""

import torch

from benchmarks.cases import LORA
from benchmarks.flux import PLAIN_FLUX, Geometry, inputs, models, step
from benchmarks.timing import Device, Rehearsal

GEOMETRY = Geometry(heads=2, head=32, double=1, single=1, side=4, text=5, rank=4)


def test_flux_has_lora_and_pool_on_the_same_modules() -> None:
    trained = {
        name: {
            key.rsplit(".", 3)[0].removeprefix("base_model.model.")
            for key, p in one.model.named_parameters()
            if p.requires_grad
        }
        for name, one in models(GEOMETRY, Device(), (1, 5, 8)).items()
    }
    assert trained[PLAIN_FLUX] == set()
    assert trained[LORA] == trained["prw, N=1"] == trained["prw, N=8"]
    assert len(trained[LORA]) == 2 * (GEOMETRY.double + GEOMETRY.single)


def test_a_training_step_moves_the_newest_expert_alone() -> None:
    one = models(GEOMETRY, Device(), (1, 5, 8))["prw, N=5"]
    model = one.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    case = step(one, inputs(GEOMETRY, Device()), "training")
    case.run()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all("4.default" in name for name in moved)
    case.clear()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gpus_flux_has_one_dtype_and_positions_in_float32() -> None:
    device = Rehearsal()
    for one in models(GEOMETRY, device, (1, 5, 8)).values():
        assert {value.dtype for value in one.model.parameters()} == {torch.bfloat16}
    batch = inputs(GEOMETRY, device)
    dtypes = {name: value.dtype for name, value in batch.items()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {"img_ids", "txt_ids"}
    assert batch["hidden_states"].requires_grad
