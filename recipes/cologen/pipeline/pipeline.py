"""The one class of both pipelines: a stock diffusers pipeline with a source stream and a pool of experts.

What differs between FLUX.1 and FLUX.2 is a `Family` (flux1.py, flux2.py). What a call does is in call.py,
what it may ask for in request.py, LoRAs beside the pool are in loras.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from torch import Tensor

from prw import Weave, load_pipeline
from prw.errors import PoolError, UnsupportedError
from prw.storage import LoraExport
from recipes.cologen.errors import SourceStreamError
from recipes.cologen.flux.base import SourceTimestep
from recipes.cologen.flux.folder import Layout
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import has_source_stream, install_source_stream
from recipes.cologen.pipeline import loras, opening
from recipes.cologen.pipeline.call import run_call
from recipes.cologen.pipeline.card import Card, Facts, Origin, origin_of, write_card
from recipes.cologen.pipeline.exporting import export_measured
from recipes.cologen.pipeline.family import Family
from recipes.cologen.pipeline.pool import FoundPool, find_pool, lora_names, pool_of
from recipes.cologen.pipeline.request import Callback, request_of
from recipes.cologen.pipeline.routing import CoLoGenPipelineOutput
from recipes.cologen.pipeline.settings import keep_settings, shift_as
from recipes.cologen.pipeline.tasks import Annotator
from recipes.cologen.runs.files import POOL
from recipes.cologen.runs.generation import GenerationSettings, write_generation


class RoutedPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """A stock pipeline that reads source pictures and routes their tokens to experts.

    Its subclasses name the stock pipeline, which comes after it in the order of methods, and the family.

    Attributes:
        family_type: The family's own steps of a call.
        layout: What the folder of the family's base holds.
        settings: What the constructor takes beside models.
        origin: Where the weights are from, for the model card.
        annotators: Kind of control map to the function that makes it of a picture, uint8 [height, width, 3].
    """

    family_type: ClassVar[type[Any]]
    layout: ClassVar[Layout]
    settings: ClassVar[tuple[str, ...]] = ("source_timestep", "generation", "base_schedule")
    origin: Origin = Origin()
    annotators: dict[str, Annotator]

    @property
    def family(self) -> Family:
        """The family's own steps of a call, over the pipeline's models."""
        family: Family = self.family_type(self)
        return family

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask: Any = None,
        task: str | None = None,
        *,
        as_of: bool | str = False,
        control: str | None = None,
        annotate: bool = True,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        true_cfg_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        max_pixels: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        source_timestep: SourceTimestep | None = None,
        cache_source: bool = True,
        output_type: str = "pil",
        output_routing: bool = False,
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int | None = None,
    ) -> CoLoGenPipelineOutput | tuple[Any, ...]:
        """Generate pictures.

        Without `image` this is `FluxPipeline` with the same frozen models, to the bit.

        Args:
            prompt: One, or a list. With a task it is brought to the form that the task was trained on.
            image: The source: PIL, numpy or torch; one for all prompts, or a list with one for each. A list
                in its place gives a prompt several sources, as many as the experts were trained with:
                `[[first, second]]` for one prompt.
            mask: For inpainting: white where to paint; None takes the pure black of `image` as the hole. Mask
                and control map are of the first source; further ones are read as they are.
            task: inpainting, grounding, control, customization, editing, or the name of an expert; None takes
                prompt and picture as they are.
            as_of: True takes the pool as it was when the task's stage ended, a name that of this stage, False
                the whole pool.
            control: Kind of control map, for the control task; it is made of `image` by `annotators`.
            annotate: False if `image` is the map already.
            prompt_2: Prompt of the T5 encoder, if it is another.
            negative_prompt: What to guide away from; needs `true_cfg_scale` above 1. None takes the run's,
                where the run that trained the experts samples with true guidance.
            negative_prompt_2: The same for T5.
            true_cfg_scale: Scale of true classifier-free guidance; 1 is none. None takes the run's, where a
                prompt is given, else 1. Above 1 every step is computed twice.
            height: Pixels, a multiple of 16. None is as training had it for a source of this shape
                (`generation.sizes`); else follows the source in its aspect ratio, or is 1024.
            width: Likewise.
            max_pixels: Of a picture whose size is not asked for, further sources included: a larger one is
                read, and generated, smaller, whatever the sizes of training. None: 1024 * 1024, as FLUX.1
                Kontext was trained.
            strength: Below 1, generation starts from `image` with that much noise (image-to-image).
            num_inference_steps: Steps; None takes as many as the run that trained the experts, else 28.
            sigmas: The schedule itself, for schedulers that take it.
            guidance_scale: For guidance-distilled bases; None takes the run's, else 3.5.
            num_images_per_prompt: Pictures for each prompt.
            generator: Of the starting noise; a list has one for each picture.
            latents: The starting noise itself, packed.
            prompt_embeds: T5 embeddings in place of the prompt.
            pooled_prompt_embeds: CLIP's, with them.
            negative_prompt_embeds: In place of the negative prompt.
            negative_pooled_prompt_embeds: With them.
            source_timestep: As the experts were trained; None takes the pipeline's own setting.
            cache_source: With `zero`, False computes source keys and values at every step; to compare.
            output_type: pil, np, pt or latent.
            output_routing: Whether the result has `routing`.
            return_dict: False gives a tuple: the pictures, and the routing if asked for.
            joint_attention_kwargs: `scale`, the strength of adapters.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every step;
                what it returns replaces the tensors. It may set `pipe._interrupt` to stop.
            callback_on_step_end_tensor_inputs: Which tensors it gets: latents, prompt_embeds.
            max_sequence_length: Tokens that a prompt is padded to; None takes as many as the experts were
                trained with, else all that the tokenizer allows, up to 512.

        Returns:
            Pictures, `[prompt 1, prompt 1, ..., prompt 2, ...]`, and the routing.

        Raises:
            CologenError, PrwError: Something was asked for that cannot be done; says what, and what can.
            ValueError: As `FluxPipeline.check_inputs`.
        """
        request = request_of(self.generation, locals())
        self._guidance_scale, self._joint_attention_kwargs = guidance_scale, joint_attention_kwargs
        self._interrupt, self._current_timestep = False, None
        images, routing = run_call(self, request)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images, routing) if output_routing else (images,)
        return CoLoGenPipelineOutput(images=images, routing=routing)

    def _set_up(
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
        keep_settings(self, GenerationSettings.model_validate(given))
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
        """Generate as a run does: its prompts' length, source timestep, steps, schedule and annotators.

        `load_pool` and `from_pretrained` do this with the settings of the run that trained the pool. The
        scheduler is replaced by one that shifts its steps as the run says, and `annotators` by the run's; one
        of the run's own code says how to run it when it is called, for settings may come from anywhere.
        """
        keep_settings(self, settings)
        shift_as(self, settings.shift)

    def load_pool(self, path: str | Path) -> Weave:
        """Load a pool of experts, and generate from then on as the run that trained it does.

        Args:
            path: As `prw` of `from_pretrained`.

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
        opened = opening.look_at(base, cls.layout, one_dtype, kwargs.get("revision"))
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
        opening.refuse_what_cannot_be_saved(self)
        folder = Path(save_directory)
        weave = self.weave
        plain = self
        if weave is not None:
            parts = {**self.components, "transformer": opening.base_of(self.transformer)}
            settings = {name: self.config[name] for name in self.settings}
            plain = type(self)(**parts, **settings)
        super(RoutedPipeline, plain).save_pretrained(str(folder), **kwargs)
        if isinstance(self.vae, PixelUnshuffleVAE):
            opening.add_pixel_vae(folder)
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
        """Upload what `save_pretrained` writes, to a new repository if need be; give the address.

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

        Raises:
            UnsupportedError: as `save_pretrained`; the hub is not asked then.
        """
        opening.refuse_what_cannot_be_saved(self)

        def save(folder: str) -> None:
            self.save_pretrained(folder, card=card, safe_serialization=safe_serialization, variant=variant)

        message = commit_message or f"Upload {type(self).__name__}"
        hub = HfApi(token=token)
        repository = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return opening.upload(hub, repository, save, message, create_pr, subfolder, keeps_card=card is None)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA as diffusers does, beside the pool and the LoRAs that are there.

        Raises:
            UnsupportedError: Its adapter's name is the pool's.
        """
        name = loras.name_beside_pool(self.transformer, adapter_name)
        with warnings.catch_warnings():
            # peft says that a second adapter may not be meant; here it is.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            super().load_lora_weights(
                pretrained_model_name_or_path_or_dict, adapter_name=name, hotswap=hotswap, **kwargs
            )

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: Any = None) -> None:
        """Activate LoRAs as diffusers does; the pool stays active, whether it is named or not.

        Args:
            adapter_names: Names of LoRAs, and of the pool if its strength is to be set.
            adapter_weights: A weight for all, or one for each name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        super().set_adapters(names, adapter_weights)
        loras.keep_pool_active(self.transformer, names)

    def disable_lora(self) -> None:
        """Switch every LoRA off; the pool stays on."""
        super().disable_lora()
        loras.switch_pool_on(self.transformer)

    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Take every LoRA out of transformer and text encoders; the pool stays.

        Args:
            reset_to_overwritten_params: As in `FluxPipeline`, where there is no pool.

        Raises:
            UnsupportedError: Weights that a control LoRA replaced are to come back, and there is a pool.
        """
        reset = {"reset_to_overwritten_params": True} if reset_to_overwritten_params else {}
        if pool_of(self.transformer) is None:
            super().unload_lora_weights(**reset)  # FLUX.2 has no such argument
        else:
            loras.unload_beside_pool(self, reset_to_overwritten_params)

    def fuse_lora(
        self,
        components: Sequence[str] = ("transformer",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fuse LoRAs into the base as diffusers does; the pool stays beside it, unfused, with its strength.

        Args:
            components: As in diffusers.
            lora_scale: As in diffusers.
            safe_fusing: As in diffusers.
            adapter_names: Names of LoRAs; None means all that are active.
            **kwargs: As in diffusers.

        Raises:
            UnsupportedError: The pool is named; nothing has changed.
        """
        super().fuse_lora(
            components=list(components),
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=loras.names_to_fuse(self, components, adapter_names),
            **kwargs,
        )

    def enable_lora_hotswap(self, **kwargs: Any) -> None:
        """Prepare for LoRAs that replace each other in place, as diffusers does before the first LoRA."""
        if pool_of(self.transformer) is not None and not lora_names(self.transformer):
            kwargs = {"check_compiled": "ignore"} | kwargs  # else the pool would count as the first LoRA
        super().enable_lora_hotswap(**kwargs)

    def set_lora_device(self, adapter_names: list[str], device: Any) -> None:
        """Move LoRAs as diffusers does; the pool stays where the transformer is.

        Raises:
            UnsupportedError: The pool is named.
        """
        loras.refuse_pool(self.transformer, adapter_names, "stays on the device of the transformer")
        super().set_lora_device(adapter_names, device)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs as diffusers does; the pool stays.

        Raises:
            UnsupportedError: The pool is named.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        loras.refuse_pool(self.transformer, names, "is taken out by pipe.weave.eject()")
        super().delete_adapters(names)

    def get_active_adapters(self) -> list[str]:
        """List the active LoRAs; the pool, which `get_list_adapters` includes, is not among them."""
        return loras.active_loras(self, super().get_active_adapters())
