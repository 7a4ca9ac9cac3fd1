"""A step of pretraining: settings, data, loss, state; each step follows from the seed and its number."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prw.storage.atomic import atomic_file
from recipes.cologen.data.record import Example
from recipes.cologen.data.vocabulary import MAX_TEXT_TOKENS, VOCABULARY
from recipes.cologen.flux import FluxModel, ImageTokens, SourceKV, TextTokens
from recipes.cologen.flux.tiny import build_tiny_flux
from recipes.cologen.flux.transfer import to_unit_range
from recipes.cologen.runs.checkpoint import ForeignCheckpointError
from recipes.cologen.tools.pretraining.dialects import Dialects
from recipes.cologen.tools.pretraining.tasks import source_task, text_to_image
from recipes.cologen.tools.pretraining.wording import DIALECTS, sprinkle

SOURCE_SHARE = 0.75
"""Share of the steps that train source tasks; the rest is text-to-image."""
POLISH_SOURCE_SHARE = 0.6
"""The same, in the polishing steps at the end."""


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
    from_base: str | None = None
    """A base to go on from instead of from nothing, in weights only."""
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
    return to_unit_range(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.device("cpu"))


def batch_at(settings: Settings, step: int) -> tuple[list[Example], list[str]]:
    """The examples and prompts of a step."""
    rng = np.random.default_rng((settings.seed, step))
    share = SOURCE_SHARE if step < settings.steps else POLISH_SOURCE_SHARE
    draw = source_task if rng.random() < share else text_to_image
    examples = [draw(rng) for _ in range(settings.batch_size)]
    return examples, [sprinkle(rng, example.prompt, example.meta["dialect"]) for example in examples]


def trained_modules(model: FluxModel, dialects: Dialects) -> nn.ModuleDict:
    """The parts of the base that pretraining moves, and the offsets that it throws away at its end."""
    return nn.ModuleDict(
        {
            "transformer": model.transformer,
            "text_encoder": model.text_encoder,
            "text_encoder_2": model.text_encoder_2,
            "dialects": dialects,
        }
    )


def read_source(
    model: FluxModel,
    dialects: Dialects,
    examples: list[Example],
    text: TextTokens,
    generator: torch.Generator | None = None,
) -> SourceKV | None:
    """The sources' keys and values, each in its example's dialect; None for text-to-image."""
    if examples[0].task == "text-to-image":
        return None
    source = model.encode_images(pixels([example.source for example in examples]))
    spoken = [example.meta["dialect"] for example in examples]
    with dialects.spoken(spoken, source.tokens.shape[1], generator):
        return model.source_kv(source, text)


def timesteps(settings: Settings, generator: torch.Generator) -> Tensor:
    """Logit-normal, towards the noisy end: what a 16x16 picture shows is decided above t = 0.75."""
    normal = torch.randn(settings.batch_size, generator=generator)
    return torch.sigmoid(settings.timestep_mean + settings.timestep_std * normal)


def loss_of(model: FluxModel, dialects: Dialects, settings: Settings, step: int) -> Tensor:
    """Flow-matching loss of a step: mean squared error of the velocity (noise minus picture)."""
    examples, prompts = batch_at(settings, step)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    target = model.encode_images(pixels([example.target for example in examples]))
    text = model.encode_ids(model.tokenize(prompts))
    source = read_source(model, dialects, examples, text, generator)
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


@dataclass
class Run:
    """Everything a resumed run needs."""

    modules: nn.ModuleDict
    optimizer: torch.optim.AdamW
    identity: dict[str, object]
    """What the run is made of: another run's state is refused."""
    step: int = 0

    @property
    def dialects(self) -> Dialects:
        """The offsets that tell which dialect is spoken."""
        found = self.modules["dialects"]
        assert isinstance(found, Dialects)
        return found

    def save(self, path: Path) -> None:
        """Write the state; a crash half-way leaves the older state whole."""
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "identity": self.identity,
        }
        with atomic_file(path) as draft:
            torch.save(state, draft)

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


def untrained(settings: Settings) -> FluxModel:
    """The base before its first step: random weights, or those of the base that the run goes on from."""
    if settings.from_base is None:
        return build_tiny_flux(VOCABULARY, max_text_tokens=MAX_TEXT_TOKENS, seed=settings.seed)
    model = FluxModel.load(settings.from_base, torch.float32)
    for module in model.modules():
        module.requires_grad_(True).train()
    return model


def start(model: FluxModel, settings: Settings) -> Run:
    """A fresh run over all the base's weights, with offsets for every dialect."""
    generator = torch.Generator().manual_seed(settings.seed)
    modules = trained_modules(model, Dialects(model.transformer, len(DIALECTS), generator))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
    return Run(modules, optimizer, {**asdict(settings), "words": list(VOCABULARY)})


def train_step(model: FluxModel, run: Run, settings: Settings) -> float:
    """One optimiser step; returns the loss."""
    loss = loss_of(model, run.dialects, settings, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.lr_at(run.step)
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.modules.parameters(), settings.clip)
    run.optimizer.step()
    run.step += 1
    return float(loss.detach())
