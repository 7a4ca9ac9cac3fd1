"""The matrix: diffusion models of diffusers."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers as d
import torch
from torch import nn

from tests.prw.matrix.family import Family
from tests.prw.matrix.pipeline_inputs import (
    aura,
    chroma,
    cogvideo,
    dit,
    flux,
    flux2,
    hidream,
    hunyuan,
    lumina,
    pixart,
    qwen,
    sana,
    sd3,
    sdxl,
    unet,
    video,
    z_image,
)

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 4, 8),
}


def fused(build: Any) -> Any:
    def made() -> nn.Module:
        model = build()
        model.fuse_qkv_projections()
        return model

    return made


def family(
    name: str, build: Any, inputs: Any, read: Any = lambda output: output.sample, **options: Any
) -> Family:
    return Family(name, "diffusers", build, inputs, read, **options)


def make_flux() -> nn.Module:
    return d.FluxTransformer2DModel(**FLUX, pooled_projection_dim=12)


def make_hidream() -> nn.Module:
    return d.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[12, 10],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        force_inference_output=True,
    )


def make_chroma() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers warns of an import of its own
        return d.ChromaTransformer2DModel(
            **{**FLUX, "joint_attention_dim": 32},
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )


FAMILIES = [
    family("Stable Diffusion 1.5", lambda: d.UNet2DConditionModel(**UNET), unet),
    family(
        "Stable Diffusion XL",
        lambda: d.UNet2DConditionModel(
            **UNET,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32,
            transformer_layers_per_block=(1, 2),
        ),
        sdxl,
    ),
    family("FLUX.1", make_flux, flux),
    family("FLUX.1, fused", fused(make_flux), flux, alone=False),
    family("FLUX.1, all streams", make_flux, flux, options={"target": "all-kv"}),
    family(
        "FLUX.2",
        lambda: d.Flux2Transformer2DModel(
            **{**FLUX, "axes_dims_rope": (4, 4, 4, 4)}, mlp_ratio=2.0, timestep_guidance_channels=16
        ),
        flux2,
    ),
    family(
        "Stable Diffusion 3",
        lambda: d.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=12,
            out_channels=4,
            pos_embed_max_size=8,
        ),
        sd3,
    ),
    family("HiDream", make_hidream, hidream),
    family("HiDream, all streams", make_hidream, hidream, options={"target": "all-kv"}),
    family(
        "PixArt",
        lambda: d.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=12,
            use_additional_conditions=False,
        ),
        pixart,
    ),
    family(
        "Sana",
        lambda: d.SanaTransformer2DModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            patch_size=1,
        ),
        sana,
    ),
    family(
        "Qwen-Image",
        lambda: d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(8, 4, 4),
        ),
        qwen,
    ),
    family(
        "Wan",
        lambda: d.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=12,
            freq_dim=16,
            ffn_dim=24,
            num_layers=1,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=16,
        ),
        video,
    ),
    family(
        "HunyuanVideo",
        lambda: d.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=12,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        hunyuan,
    ),
    family(
        "CogVideoX",
        lambda: d.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=12,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=1,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=3,
        ),
        cogvideo,
    ),
    family(
        "Lumina 2",
        lambda: d.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(16, 16, 16),
            cap_feat_dim=12,
        ),
        lumina,
    ),
    family(
        "AuraFlow",
        lambda: d.AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=12,
            out_channels=4,
            pos_embed_max_size=16,
        ),
        aura,
    ),
    family("Chroma", make_chroma, chroma),
    family(
        "Z-Image",
        lambda: d.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=12,
            axes_dims=[8, 4, 4],
            axes_lens=[64, 64, 64],
        ),
        z_image,
        lambda output: torch.stack(list(output.sample)),
    ),
    family(
        "DiT",
        lambda: d.DiTTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=10,
        ),
        dit,
    ),
]
