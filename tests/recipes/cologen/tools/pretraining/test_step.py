"""Pretraining of the tiny base: steps follow from seed and number, and a stopped run goes on exactly."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY
from recipes.cologen.flux import FluxModel
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from recipes.cologen.runs.checkpoint import ForeignCheckpointError
from recipes.cologen.tools.pretrain_tiny import pretrain
from recipes.cologen.tools.pretraining.step import Settings, batch_at, start, train_step, untrained


def brief(steps: int) -> Settings:
    return Settings(
        steps=steps, polish_steps=0, batch_size=2, save_every=2, evaluate_every=10**6, num_evaluated=1
    )


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=1000, warmup_steps=100)
    rates = [settings.lr_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(settings.lr / 100)
    assert rates[100] == rates[590] == settings.lr
    assert all(later <= earlier for earlier, later in pairwise(rates[600:]))
    assert rates[-1] == pytest.approx(settings.lr / 50)
    polish = [settings.lr_at(step) for step in range(1000, settings.total_steps)]
    assert polish[0] == settings.polish_lr
    assert all(later <= earlier for earlier, later in pairwise(polish))
    assert polish[-1] == pytest.approx(settings.polish_lr / 50)


def test_a_steps_data_is_a_function_of_the_seed_and_the_step() -> None:
    settings = brief(10)
    assert batch_at(settings, 3)[1] == batch_at(settings, 3)[1]
    assert batch_at(settings, 3)[1] != batch_at(settings, 4)[1]
    kinds = {batch_at(settings, step)[0][0].task == "text-to-image" for step in range(20)}
    assert kinds == {True, False}


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = brief(4)
    whole = build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=settings.seed)
    run = start(whole, settings)
    for _ in range(2):
        train_step(whole, run, settings)
    run.save(tmp_path / "state.pt")
    again = build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=99)
    resumed = start(again, settings)
    resumed.load(tmp_path / "state.pt")
    for _ in range(2):
        train_step(whole, run, settings)
        train_step(again, resumed, settings)
    assert resumed.step == run.step == 4
    for one, other in zip(run.modules.parameters(), resumed.modules.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_written_base_is_what_was_trained_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recipes.cologen.tools.pretrain_tiny.evaluate", lambda *_: {"text-to-image": 0.0})
    pretrain(brief(2), tmp_path / "work", tmp_path / "base")
    assert '"step": 2' in capsys.readouterr().out
    trained = torch.load(tmp_path / "work" / "state.pt", weights_only=True)["modules"]
    loaded = FluxModel.load(tmp_path / "base", torch.float32)
    weight = loaded.transformer.x_embedder.weight
    assert torch.equal(weight, trained["transformer.x_embedder.weight"].half().float())
    assert "dialects.offsets" in trained  # kept to go on from, and not part of the base
    assert not any("dialects" in name for name, _ in loaded.transformer.named_parameters())
    assert sum(file.stat().st_size for file in (tmp_path / "base").rglob("*.safetensors")) < 8_000_000


def test_a_run_may_go_on_from_a_base(tmp_path: Path) -> None:
    base = build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=5)
    save_tiny_flux(base, tmp_path / "base", torch.float32)
    settings = replace(brief(2), from_base=str(tmp_path / "base"))
    model = untrained(settings)
    for one, other in zip(base.transformer.parameters(), model.transformer.parameters(), strict=True):
        assert torch.equal(one, other) and other.requires_grad
    run = start(model, settings)
    train_step(model, run, settings)
    assert not torch.equal(base.transformer.x_embedder.weight, model.transformer.x_embedder.weight)
    with pytest.raises(ForeignCheckpointError, match="from_base"):
        run.save(tmp_path / "state.pt")
        start(model, brief(2)).load(tmp_path / "state.pt")


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    model = build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS)
    start(model, brief(4)).save(tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ForeignCheckpointError, match="steps differ"):
        start(model, brief(6)).load(tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before
