"""CoLoGenPipeline: a diffusers pipeline that draws with a source picture and a pool of routed experts.

It is stock `FluxPipeline` where there is nothing to say about sources and experts: prompts, latents, offload,
LoRAs, saving of parts. What a call does with its arguments is in `calling.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5Tokenizer,
)

from prw import Weave, load_pipeline
from prw.errors import UnsupportedError
from recipes.cologen.errors import PromptError, SourceStreamError
from recipes.cologen.flux.model import SourceTimestep
from recipes.cologen.flux.pixel_vae import PixelUnshuffleVAE
from recipes.cologen.flux.source_stream import has_source_stream, install_source_stream
from recipes.cologen.pipeline.calling import Calling
from recipes.cologen.pipeline.opening import (
    PIXEL_VAE,
    add_pixel_vae,
    base_of,
    look_at,
    refuse_what_cannot_be_saved,
)
from recipes.cologen.pipeline.pool import POOL, find_pool, pool_of
from recipes.cologen.pipeline.tasks import ANNOTATORS


class CoLoGenPipeline(Calling):
    """Draws pictures from a prompt and a source picture, with a pool of routed experts on FLUX.1.

    Made by `from_pretrained(base, prw=path)`, or from the parts of a FluxPipeline; the transformer then gets
    the source stream's attention processors, which change nothing where there is no source.

    Attributes:
        annotators: Kind of control map to the function that makes it of a picture, uint8 [height, width, 3];
            add your own.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5Tokenizer,
        transformer: FluxTransformer2DModel,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        source_timestep: str = "same",
    ) -> None:
        """Take the parts.

        Raises:
            SourceStreamError: The source timestep is neither `same` nor `zero`; or projections are fused or
                an attention has a processor of somebody else's.
        """
        if source_timestep not in get_args(SourceTimestep):
            raise SourceStreamError(
                f"source_timestep is {source_timestep!r}; expected 'same' or 'zero', as the experts were "
                "trained."
            )
        super().__init__(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(source_timestep=source_timestep)
        if isinstance(vae, PixelUnshuffleVAE):
            self.register_to_config(vae=PIXEL_VAE)
        if transformer is not None and not has_source_stream(transformer):
            install_source_stream(transformer)
        self.annotators = dict(ANNOTATORS)

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
            pretrained_model_name_or_path: A FLUX.1 base, or a whole pipeline that `save_pretrained` wrote: a
                folder, or a repository on the hub. Code in it is never run.
            prw: The pool: a folder that `weave.save_pretrained` wrote, a stage's checkpoint, or the run that
                training wrote (its newest finished stage). None takes the one that the pipeline was saved
                with, if there is one.
            source_timestep: As the experts were trained; None reads it from the run around the pool or from
                the saved pipeline, and is `same` where neither says it.
            **kwargs: As for `FluxPipeline.from_pretrained`: dtype (float32 if left out), device_map,
                revision, parts by name ...

        Raises:
            BaseModelError: The folder is no FLUX.1 base that this recipe can use.
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
        opened = look_at(base, one_dtype, kwargs.get("revision"))
        folder = opened.pool if prw is None else prw
        found = None if folder is None else find_pool(folder)
        timestep = source_timestep or (found.source_timestep if found else None)
        if timestep is not None:
            kwargs["source_timestep"] = timestep
        if opened.own_vae is not None and "vae" not in kwargs:
            # Given as None, it is not looked up in the folder, whose module is neither imported nor needed.
            pipe = super().from_pretrained(str(base), vae=None, **kwargs)
            settings = {"source_timestep": pipe.config.source_timestep}
            pipe = cls(**{**pipe.components, "vae": opened.own_vae}, **settings)
        else:
            pipe = super().from_pretrained(str(base), **kwargs)
        pipe.register_to_config(_name_or_path=str(base))
        if found is not None:
            load_pipeline(pipe, found.folder)
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the whole: the base as any pipeline, and the pool in `prw/`; `from_pretrained` opens it again.

        Stock `FluxPipeline.from_pretrained` opens it too, as the base alone.

        Args:
            save_directory: Folder to write.
            **kwargs: As for `FluxPipeline.save_pretrained`.

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
            plain = type(self)(**parts, source_timestep=self.config.source_timestep)
        super(CoLoGenPipeline, plain).save_pretrained(str(folder), **kwargs)
        if isinstance(self.vae, PixelUnshuffleVAE):
            add_pixel_vae(folder)
        if weave is not None:
            weave.save_pretrained(folder / POOL)

    def _get_t5_prompt_embeds(self, prompt: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Encode as `FluxPipeline` does, but refuse what it would cut off.

        Raises:
            PromptError: A prompt has more T5 tokens than are read.
        """
        most = kwargs.get("max_sequence_length", 512)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        for text, ids in zip(prompts, self.tokenizer_2(prompts).input_ids if prompts else (), strict=True):
            if len(ids) > most:
                raise PromptError(
                    f"the prompt has {len(ids)} T5 tokens (its end mark included), but {most} are read: "
                    f"{text!r}. Shorten it, or give a larger max_sequence_length (FLUX.1-dev reads 512)."
                )
        embeds: torch.Tensor = super()._get_t5_prompt_embeds(prompt, *args, **kwargs)
        return embeds
