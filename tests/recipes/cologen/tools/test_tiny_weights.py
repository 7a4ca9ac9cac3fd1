"""The flux_dev config on random weights: written, trained and drawn with by the commands a user types."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from PIL import Image
from safetensors.torch import load_file

import prw
from recipes.cologen import generate, train
from recipes.cologen.caching.encoder import Encoder
from recipes.cologen.config.run import load_config
from recipes.cologen.data.opening import training_records
from recipes.cologen.data.sampler import BatchSampler
from recipes.cologen.runs.loading import load_base
from recipes.cologen.stages import COLOGEN_STAGES
from recipes.cologen.tools import random_weights
from recipes.cologen.training.growth import curriculum, grow
from recipes.cologen.training.input.batches import batches
from recipes.cologen.training.step import TrainedModel, batch_loss, encode


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like the repository's, in which the first command was typed."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert random_weights.main(["--pictures", "4"]) == 0
    return folder


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "arrow")
    return place


FEW = ["stages.*.steps=2", "stages.*.batch_size=2", "validation.samples=1", "report.samples=1"]


@pytest.fixture(scope="module")
def trained(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "arrow")
        command = ["--config", "flux_dev_tiny_weights", "--output", "runs/tiny", "--set", *FEW]
        assert train.main(command) == 0
    return place / "runs/tiny"


def test_all_five_stages_run_from_the_three_kinds_of_source_to_the_report(trained):
    ledger = json.loads((trained / "ledger.json").read_text())
    assert list(ledger["stages"]) == list(COLOGEN_STAGES)
    assert {stage["status"] for stage in ledger["stages"].values()} == {"finished"}
    assert (trained / "report/index.html").is_file()
    card = json.loads((trained / "data_card.json").read_text())
    for facts in card["stages"].values():
        assert facts["records"] == 12 and set(facts["shares"]) == {"table", "shards", "folder"}
    kinds = {facts["path"].split(":")[0] for facts in card["sets"]}
    assert kinds == {"parquet", "tar", "folder"}
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in losses if row["kind"] == "train")
    resolved = yaml.safe_load((trained / "config.yaml").read_text())
    assert "extends" not in resolved and resolved["pool"]["rank"] == 128


def test_experts_and_routers_are_kept_in_float32_on_a_base_in_bfloat16(trained):
    weights = load_file(trained / "checkpoints/editing/prw/adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert load_config(trained / "config.yaml").base.dtype == "bfloat16"


def test_a_picture_is_drawn_at_the_size_of_training(trained, there):
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save("in.png")
    command = ["--checkpoint", "runs/tiny", "--task", "editing", "--image", "in.png", "--native"]
    assert generate.main([*command, "--prompt", "make it blue", "--output", "out.png"]) == 0
    with Image.open("out.png") as drawn:
        assert drawn.size == (48, 32)
    assert generate.main([*command, "--prompt", "x" * 200, "--output", "long.png"]) == 1


def test_a_base_that_nobody_has_fetched_is_refused_with_the_way_to_get_it(there, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(there / "empty"))
    assert train.main(["--config", "flux_kontext", "--output", "runs/dev"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "no FLUX base at" in said and "'black-forest-labs/FLUX.1-Kontext-dev' cannot be fetched" in said
    assert "licence" in said and "--set base.path=PATH" in said and "hf download" in said
    assert not (there / "runs/dev/config.yaml").exists()


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_a_run_with_every_setting_for_a_small_machine_stops_and_goes_on(there, monkeypatch):
    monkeypatch.setattr(
        _AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend
    )
    small = ["base.quantisation=torchao_int8", "machine.encoders=offload", "machine.attention=_native_math"]
    learning = ["optimizer.name=adamw_fused", "optimizer.ema_decay=0.9", "flow.source_timestep=zero"]
    command = [
        "--config",
        "flux_dev_tiny_weights",
        "--output",
        "runs/small",
        "--set",
        *FEW,
        *small,
        *learning,
    ]
    assert train.main([*command, "--stage", "inpainting"]) == 0
    assert train.main([*command, "--stage", "..grounding"]) == 0
    ledger = json.loads((there / "runs/small/ledger.json").read_text())
    assert {name: row["status"] for name, row in ledger["stages"].items()} == {
        "inpainting": "finished",
        "grounding": "finished",
    }
    weights = load_file("runs/small/checkpoints/grounding/prw/adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.fixture
def in_training(there):
    """The second stage's pool on the bfloat16 base, as a run grows it."""
    config = load_config("flux_dev_tiny_weights", ["flow.shift=base", "pool.rank=4"])
    model = load_base(config, torch.device("cpu"))
    weave = prw.inject(model.transformer, target="kv", **config.pool.model_dump())
    walk = curriculum(config).stages(weave)
    for name in ("inpainting", "grounding"):
        grow(config, model, walk, name, 0)
    return TrainedModel(
        model, weave, Accelerator(mixed_precision="bf16"), config, Encoder(model, model.device)
    )


def some_batch(in_training, size=2):
    source = training_records(in_training.config.data).stage("grounding")
    sampler = BatchSampler(source.num_records, batch_size=size, seed=1)
    return next(batches(source.records, "grounding", sampler, in_training.config.dropout))


def test_experts_gates_losses_and_gradients_are_float32_under_a_bfloat16_base(in_training):
    """T1 of trainers.md: experts made on a model in bfloat16 would lose small updates."""
    base = {
        value.dtype for name, value in in_training.model.transformer.named_parameters() if ".prw_" not in name
    }
    assert base == {torch.bfloat16}
    parameters = in_training.weave.trainable_parameters()
    assert {value.dtype for value in parameters} == {torch.float32}
    loss, _ = batch_loss(in_training, in_training.config.stages["grounding"], some_batch(in_training))
    loss.backward()
    assert loss.dtype is torch.float32
    gradients = [value.grad for value in parameters if value.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32} and len(gradients) > 8
    gates = dict(in_training.model.transformer.named_parameters())
    gate = gates["transformer_blocks.0.attn.to_k.prw_gate1.default.weight"]
    before = gate.detach().clone()
    torch.optim.AdamW(parameters, lr=1e-7, weight_decay=0.0).step()
    changed = (gate != before).float().mean()
    in_sixteen_bits = (gate.bfloat16() != before.bfloat16()).float().mean()
    assert changed > 0.9 and in_sixteen_bits < 0.1


def test_times_are_drawn_by_the_law_of_the_settings_in_float32(in_training):
    batch = some_batch(in_training)
    plain = in_training.config.model_copy(
        update={"flow": in_training.config.flow.model_copy(update={"shift": "none"})}
    )
    shifted = encode(in_training, batch).timestep
    drawn = encode(replace(in_training, config=plain), batch)
    factor = np.exp(0.5 + (6 - 256) * (1.15 - 0.5) / (4096 - 256))  # FluxPipeline's mu for 2 x 3 tokens
    assert shifted.dtype is torch.float32
    torch.testing.assert_close(shifted, factor * drawn.timestep / (1 + (factor - 1) * drawn.timestep))
    velocity, noisy = drawn.velocity, drawn.noisy.tokens
    clean = noisy - drawn.timestep.view(-1, 1, 1) * velocity  # x_t = x0 + t (noise - x0)
    again = encode(in_training, batch)
    torch.testing.assert_close(
        again.noisy.tokens, clean + shifted.view(-1, 1, 1) * velocity, rtol=1e-4, atol=1e-5
    )
