"""Pretrain the tiny source-aware base: `python -m recipes.cologen.pretrain_tiny --output FOLDER`.

Text-to-image and generic source tasks (data/pretraining.py), flow matching over all weights, from
nothing. It can be stopped and run again; every step's data and noise follow from the seed and the step
number alone.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recipes.cologen.data import oracle
from recipes.cologen.data.pretraining import CAPTIONED, UNNAMED, source_task, sprinkle, text_to_image
from recipes.cologen.data.record import Example
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY
from recipes.cologen.flux import FluxModel, ImageTokens, generate
from recipes.cologen.flux.tiny import build_tiny_flux, save_tiny_flux
from recipes.cologen.training.checkpoint import ForeignCheckpointError

SOURCE_SHARE = 0.75
"""Share of the steps that train source tasks; the rest is text-to-image."""
POLISH_SOURCE_SHARE = 0.6
"""The same, in the polishing steps at the end."""
HELD_OUT = 2**31
"""Seeds from here on are never trained on."""


@dataclass(frozen=True)
class Settings:
    """One pretraining run."""

    steps: int
    batch_size: int = 64
    lr: float = 2e-3
    warmup_steps: int = 200
    decay_share: float = 0.4
    polish_steps: int = 4_000
    """Steps after these, at a low learning rate that falls again, with more text-to-image."""
    polish_lr: float = 8e-4
    clip: float = 1.0
    timestep_mean: float = 0.8
    timestep_std: float = 1.2
    seed: int = 0
    save_every: int = 500
    evaluate_every: int = 2000
    num_evaluated: int = 128

    @property
    def total_steps(self) -> int:
        """All steps, the polishing ones included."""
        return self.steps + self.polish_steps

    def lr_at(self, step: int) -> float:
        """Warm-up, a plateau, a fall to a fiftieth over the last `decay_share`; then the polish falls too."""
        if step >= self.steps:
            return self.polish_lr * max(0.02, 1 - (step - self.steps) / self.polish_steps)
        rise = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / (self.decay_share * self.steps)
        return self.lr * rise * max(0.02, min(1.0, left))


def pixels(images: list[np.ndarray]) -> Tensor:
    """uint8 pictures to a float batch [batch, 3, height, width] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(batch: Tensor) -> list[np.ndarray]:
    """A float batch in [-1, 1] to uint8 pictures."""
    levels = ((batch.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().numpy())


def batch_at(settings: Settings, step: int) -> tuple[list[Example], list[str]]:
    """The examples and prompts of a step."""
    rng = np.random.default_rng((settings.seed, step))
    share = SOURCE_SHARE if step < settings.steps else POLISH_SOURCE_SHARE
    draw = source_task if rng.random() < share else text_to_image
    examples = [draw(rng) for _ in range(settings.batch_size)]
    return examples, [sprinkle(rng, example.prompt) for example in examples]


def trained_modules(model: FluxModel) -> nn.ModuleDict:
    """The parts of the base that pretraining moves."""
    return nn.ModuleDict(
        {
            "transformer": model.transformer,
            "text_encoder": model.text_encoder,
            "text_encoder_2": model.text_encoder_2,
        }
    )


def timesteps(settings: Settings, generator: torch.Generator) -> Tensor:
    """Logit-normal, towards the noisy end: what a 16x16 picture shows is decided above t = 0.75."""
    normal = torch.randn(settings.batch_size, generator=generator)
    return torch.sigmoid(settings.timestep_mean + settings.timestep_std * normal)


def loss_of(model: FluxModel, settings: Settings, step: int) -> Tensor:
    """Flow-matching loss of a step: mean squared error of the velocity (noise minus picture)."""
    examples, prompts = batch_at(settings, step)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    target = model.encode_images(pixels([example.target for example in examples]))
    source = None
    if examples[0].task != "text-to-image":
        source = model.encode_images(pixels([example.source for example in examples]))
    text = model.encode_ids(model.tokenize(prompts))
    noise = torch.randn(target.tokens.shape, generator=generator)
    t = timesteps(settings, generator)
    mixed = torch.lerp(target.tokens, noise, t[:, None, None])
    velocity = model.velocity(
        ImageTokens(mixed, target.rows, target.columns),
        t,
        text,
        source,
        source_timestep="zero",
        guidance=None,
    )
    return nn.functional.mse_loss(velocity, noise - target.tokens)


@torch.no_grad()
def evaluate(model: FluxModel, settings: Settings) -> dict[str, float]:
    """Exact-match scores by the oracle on held-out draws: text-to-image, and every source task."""
    rng = np.random.default_rng((HELD_OUT, settings.seed))
    captions = [text_to_image(rng) for _ in range(settings.num_evaluated)]
    scores = {"text-to-image": _score(model, captions, settings.seed)}
    asked = [source_task(rng) for _ in range(4 * settings.num_evaluated)]
    for name in sorted({example.task for example in asked} - {UNNAMED}):
        scores[name] = _score(model, [example for example in asked if example.task == name], settings.seed)
    return scores


def _score(model: FluxModel, examples: list[Example], seed: int) -> float:
    source = None
    if examples[0].task != "text-to-image":
        source = pixels([example.source for example in examples])
    drawn = generate(
        model,
        [example.prompt for example in examples],
        source,
        steps=12,
        generator=seed,
        height=16,
        width=16,
        source_timestep="zero",
    )
    captioned = examples[0].task in CAPTIONED
    results = [
        oracle.shows_caption(image, example) if captioned else oracle.score(example, image)
        for example, image in zip(examples, to_images(drawn), strict=True)
    ]
    return float(np.mean(results))


@dataclass
class Run:
    """Everything a resumed run needs."""

    modules: nn.ModuleDict
    optimizer: torch.optim.AdamW
    identity: dict[str, object]
    """What the run is made of: another run's state is refused."""
    step: int = 0

    def save(self, path: Path) -> None:
        """Write the state; a crash half-way leaves the older state whole."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "identity": self.identity,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ForeignCheckpointError: it belongs to a run with other settings or other words.
        """
        state = torch.load(path, weights_only=True)
        found = state.get("identity", {})
        changed = [key for key in self.identity if found.get(key) != self.identity[key]]
        if changed:
            raise ForeignCheckpointError(
                f"{path} belongs to another pretraining: {', '.join(changed)} differ from this one's. Give "
                "another --work folder, or the settings it was started with."
            )
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def start(model: FluxModel, settings: Settings) -> Run:
    """A fresh run over all the base's weights."""
    modules = trained_modules(model)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
    return Run(modules, optimizer, {**asdict(settings), "words": list(VOCABULARY)})


def train_step(model: FluxModel, run: Run, settings: Settings) -> float:
    """One optimiser step; returns the loss."""
    loss = loss_of(model, settings, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.lr_at(run.step)
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.modules.parameters(), settings.clip)
    run.optimizer.step()
    run.step += 1
    return float(loss.detach())


def append(path: Path, row: dict[str, object]) -> None:
    """Add a line to the log and show it."""
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)  # noqa: T201 - the log of a long run is its only face


def pretrain(settings: Settings, work: Path, output: Path, *, compiled: bool = False) -> None:
    """Train to the last step, saving as it goes, and write the base to `output`.

    `compiled` compiles the transformer's blocks first: minutes once, then steps a quarter faster.
    """
    work.mkdir(parents=True, exist_ok=True)
    model = build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=settings.seed)
    run = start(model, settings)
    if compiled:
        model.transformer.compile_repeated_blocks()
    state = work / "state.pt"
    if state.exists():
        run.load(state)
    losses: list[float] = []
    began = time.perf_counter()
    while run.step < settings.total_steps:
        losses.append(train_step(model, run, settings))
        if run.step % settings.save_every == 0 or run.step == settings.total_steps:
            run.save(state)
            row: dict[str, object] = {
                "step": run.step,
                "loss": round(float(np.mean(losses)), 5),
                "lr": settings.lr_at(run.step - 1),
                "seconds": round(time.perf_counter() - began, 1),
            }
            losses.clear()
            if run.step % settings.evaluate_every == 0 or run.step == settings.total_steps:
                row["scores"] = {k: round(v, 3) for k, v in evaluate(model, settings).items()}
            append(work / "log.jsonl", row)
    save_tiny_flux(model, output, torch.float16)


def main() -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "assets" / "tiny_flux")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretrain_tiny"), help="state and log of the run"
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--polish-steps", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks first (needs a C++ compiler)"
    )
    arguments = parser.parse_args()
    settings = Settings(steps=arguments.steps, polish_steps=arguments.polish_steps, seed=arguments.seed)
    pretrain(settings, arguments.work, arguments.output, compiled=arguments.compile)


if __name__ == "__main__":
    main()
