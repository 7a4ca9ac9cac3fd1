"""A pipeline as a whole: base and pool opened together, and saved together as one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from huggingface_hub import HfApi

from prw import LoraExport, Weave, load_pipeline
from prw.errors import PoolError, UnsupportedError
from recipes.cologen.config.model import Shift
from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.folder import Layout
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.shift import SHIFTED, scheduler_for
from recipes.cologen.flux.source_stream import has_source_stream, install_source_stream
from recipes.cologen.pipeline.calling import Calling
from recipes.cologen.pipeline.card import README, Card, Facts, Origin, origin_of, write_card
from recipes.cologen.pipeline.exporting import export_measured
from recipes.cologen.pipeline.opening import (
    add_pixel_vae,
    base_of,
    look_at,
    refuse_what_cannot_be_saved,
)
from recipes.cologen.pipeline.pool import POOL, FoundPool, find_pool, pool_of
from recipes.cologen.pipeline.tasks import ANNOTATORS, annotator_of_file
from recipes.cologen.runs.generation import GenerationSettings, write_generation


class Whole(Calling):
    """A pipeline that knows its pool; a family of bases says how it is made.

    Attributes:
        layout: What the folder of the family's base holds.
        settings: What the constructor takes beside parts.
        origin: Where the weights are from, for the model card.
    """

    layout: ClassVar[Layout]
    settings: ClassVar[tuple[str, ...]] = ("source_timestep", "generation", "base_schedule")
    origin: Origin = Origin()

    def _begin(
        self,
        source_timestep: str | None,
        generation: Mapping[str, Any] | None,
        base_schedule: Mapping[str, Any] | None,
    ) -> None:
        """Keep the settings and give the transformer its source stream.

        Raises:
            SourceStreamError: The source timestep is neither `same` nor `zero`; or projections are fused or
                an attention has a processor of somebody else's.
        """
        if source_timestep not in (None, *get_args(SourceTimestep)):
            raise SourceStreamError(
                f"source_timestep is {source_timestep!r}; expected 'same' or 'zero', as the experts were "
                "trained."
            )
        given = dict(generation or {}) | ({"source_timestep": source_timestep} if source_timestep else {})
        self._register(GenerationSettings.model_validate(given))
        self.register_to_config(base_schedule=base_schedule)
        if self.transformer is not None and not has_source_stream(self.transformer):
            install_source_stream(self.transformer)

    @property
    def generation(self) -> GenerationSettings:
        """What a call repeats of the run that trained the experts, where it does not say otherwise."""
        return GenerationSettings.model_validate(
            {**self.config.generation, "source_timestep": self.config.source_timestep}
        )

    def generate_as(self, settings: GenerationSettings) -> None:
        """Draw as a run does: its prompts' length, source timestep, steps, schedule and annotators.

        `load_pool` and `from_pretrained` do this with the settings of the run that trained the pool. The
        scheduler is replaced by one that shifts its steps as the run says, and `annotators` by the run's; one
        of the run's own code says how to run it when it is called, for settings may come from anywhere.

        Args:
            settings: Of the run.
        """
        self._register(settings)
        self._shift_as(settings.shift)

    def _shift_as(self, shift: Shift) -> None:
        """Shift the steps by a law, starting from the base's own scheduler, whatever run came before."""
        config = {name: value for name, value in self.scheduler.config.items() if name[0] != "_"}
        own = self.config.base_schedule or {name: config[name] for name in SHIFTED if name in config}
        base = {**config, **own}
        if shift == "base" and base == config:
            return
        self.register_to_config(base_schedule=own)
        self.register_modules(scheduler=scheduler_for(base, shift))

    def _register(self, settings: GenerationSettings) -> None:
        """Keep settings where diffusers keeps a pipeline's own: they go along when it is saved or reused."""
        rest = settings.model_dump(mode="json", exclude={"source_timestep"})
        self.register_to_config(source_timestep=settings.source_timestep, generation=rest)
        own = {
            kind: annotator_of_file(kind, settings.annotators, lambda: self._execution_device)
            for kind in settings.annotators
        }
        self.annotators = {**ANNOTATORS, **own}

    def load_pool(self, path: str | Path) -> Weave:
        """Load a pool of experts into the pipeline, and draw from then on as the run that trained it does.

        Args:
            path: As `prw` of `from_pretrained`.

        Returns:
            The handle of the pool.

        Raises:
            StorageError: The pool is missing, damaged or does not fit; the pipeline is untouched then.
            RunFolderError: The run has no finished stage.
            ConfigError: The settings of the run cannot be read.
        """
        return self._take_pool(find_pool(path))

    def _take_pool(
        self, found: FoundPool, source_timestep: SourceTimestep | None = None, scheduler: Any = None
    ) -> Weave:
        """Load a pool and repeat the settings of its run, but for what the caller has given himself."""
        weave = load_pipeline(self, found.folder)
        if found.generation is not None:
            own = source_timestep or found.generation.source_timestep
            self.generate_as(found.generation.model_copy(update={"source_timestep": own}))
            if scheduler is not None:
                self.register_modules(scheduler=scheduler)
        return weave

    @property
    def weave(self) -> Weave | None:
        """The handle of the pool of experts; None where the transformer has none."""
        return pool_of(self.transformer)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        prw: str | Path | None = None,
        source_timestep: SourceTimestep | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a base, and a pool of experts onto it.

        Args:
            pretrained_model_name_or_path: A base, or a whole pipeline that `save_pretrained` wrote: a
                folder, or a repository on the hub. Code in it is never run.
            prw: The pool: a folder that `weave.save_pretrained` wrote, a stage's checkpoint, or the run that
                training wrote (its newest finished stage). None takes the one that the pipeline was saved
                with, if there is one.
            source_timestep: As the experts were trained; None reads it, with all else that the run fixes for
                generation (`pipe.generation`), from the run around the pool, from the file beside the pool
                or from the saved pipeline, and is `same` where none of them says it.
            **kwargs: As for the stock pipeline: dtype (float32 if left out), device_map,
                revision, parts by name ...

        Raises:
            BaseModelError: The folder is no base of this family that this recipe can use.
            StorageError: The pool is missing, damaged or does not fit.
            RunFolderError: The run has no finished stage.
            SourceStreamError: The source timestep is unknown.
        """
        base = pretrained_model_name_or_path
        if "torch_dtype" not in kwargs:
            # diffusers would read the transformer as float32, and transformers the encoders as stored.
            kwargs.setdefault("dtype", torch.float32)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        one_dtype = dtype if isinstance(dtype, torch.dtype) else None
        opened = look_at(base, cls.layout, one_dtype, kwargs.get("revision"))
        folder = opened.pool if prw is None else prw
        found = None if folder is None else find_pool(folder)
        if source_timestep is not None:
            kwargs["source_timestep"] = source_timestep
        if opened.own_vae is not None and "vae" not in kwargs:
            # Given as None, it is not looked up in the folder, whose module is neither imported nor needed.
            pipe = super().from_pretrained(str(base), vae=None, **kwargs)
            parts = {**pipe.components, "vae": opened.own_vae}
            pipe = cls(**parts, **{name: pipe.config[name] for name in cls.settings})
        else:
            pipe = super().from_pretrained(str(base), **kwargs)
        pipe.register_to_config(_name_or_path=str(base))
        pipe.origin = origin_of(str(base), opened.folder, found.run if found else None)
        if found is not None:
            pipe._take_pool(found, source_timestep, kwargs.get("scheduler"))
        return pipe

    def save_pretrained(self, save_directory: str | Path, *, card: Card | None = None, **kwargs: Any) -> None:
        """Save the whole: the base as any pipeline, and the pool in `prw/`; `from_pretrained` opens it again.

        The stock pipeline opens it too, as the base alone. README.md is its model card; beside it lie the
        run's data card and the base's licence, where they are known.

        Args:
            save_directory: Folder to write.
            card: What the card says beside what is known, pictures among it; None leaves a README.md that is
                there already as it is.
            **kwargs: As for any pipeline.

        Raises:
            UnsupportedError: There are LoRAs, weights are offloaded or quantised, or `push_to_hub` is given.
        """
        if kwargs.pop("push_to_hub", False):
            raise UnsupportedError(
                "save_pretrained writes a folder; pipe.push_to_hub(repository) saves and uploads the whole."
            )
        refuse_what_cannot_be_saved(self)
        folder = Path(save_directory)
        weave = self.weave
        plain = self
        if weave is not None:
            parts = {**self.components, "transformer": base_of(self.transformer)}
            settings = {name: self.config[name] for name in self.settings}
            plain = type(self)(**parts, **settings)
        super(Whole, plain).save_pretrained(str(folder), **kwargs)
        if isinstance(self.vae, PixelUnshuffleVAE):
            add_pixel_vae(folder)
        if weave is not None:
            weave.save_pretrained(folder / POOL)
            write_generation(folder / POOL, self.generation)
        write_card(folder, card, Facts(type(self).__name__, self.config.source_timestep, weave, self.origin))

    def export_lora(self, name: str, path: str | Path, *, seed: int = 0, **call: Any) -> LoraExport:
        """Save one expert as a plain LoRA for stock diffusers, and print how far it is from the pool.

        Neither router nor source stream are part of it: it acts on every token with weight one.

        Args:
            name: Name of the expert.
            path: Folder to write; `FluxPipeline.load_lora_weights` opens it.
            seed: Of the noise.
            **call: The call that is measured, with the pool and with the LoRA: prompt, image, task, ...

        Returns:
            The report.

        Raises:
            PoolError: The pipeline has no pool, or the pool no such expert.
            RoutingQuestionError: The call has no picture.
        """
        weave = self.weave
        if weave is None:
            raise PoolError("the pipeline has no pool to export of: load one with pipe.load_pool(path).")
        return export_measured(self, weave, name, path, seed, call)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        card: Card | None = None,
    ) -> str:
        """Upload the whole as `save_pretrained` writes it; the repository is made if there is none.

        Args:
            repo_id: Name of the repository on the hub.
            commit_message: Of the upload.
            private: Whether a new repository is private.
            token: Of the account; None takes the one of `hf auth login`.
            create_pr: Whether to open a pull request with it.
            safe_serialization: As in diffusers.
            variant: As in diffusers.
            subfolder: Where in the repository.
            card: As in `save_pretrained`; None leaves the card of a repository that has one as it is.

        Returns:
            The address of the commit.

        Raises:
            UnsupportedError: as `save_pretrained`; the hub is not asked then.
        """
        refuse_what_cannot_be_saved(self)
        hub = HfApi(token=token)
        repository = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as draft:
            self.save_pretrained(draft, card=card, safe_serialization=safe_serialization, variant=variant)
            there = README if subfolder is None else f"{subfolder}/{README}"
            if card is None and hub.file_exists(repository, there):
                (Path(draft) / README).unlink()
            return str(
                hub.upload_folder(
                    repo_id=repository,
                    folder_path=draft,
                    path_in_repo=subfolder,
                    commit_message=commit_message or f"Upload {type(self).__name__}",
                    create_pr=create_pr,
                )
            )
