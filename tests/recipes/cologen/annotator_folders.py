"""Tiny random depth and segmentation networks, saved in the layout in which the real ones are published."""

from pathlib import Path

import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)


def save_depth_anything(folder: Path, kind: str = "relative", seed: int = 0) -> Path:
    """Depth Anything V2: keeps the picture's shape, in multiples of its patch of 14 pixels."""
    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    sizes = {"neck_hidden_sizes": [8, 8], "fusion_hidden_size": 8, "head_hidden_size": 8}
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=16,
            reassemble_factors=[1, 0.5],
            head_in_index=-1,
            depth_estimation_type=kind,
            **sizes,
        )
    )
    with torch.no_grad():  # small random features would give one depth everywhere, or none above 0
        for convolution in (model.head.conv1, model.head.conv2):
            convolution.weight.mul_(10)
        model.head.conv3.weight.normal_(std=10).abs_()
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)
    return folder


def save_dpt(folder: Path) -> Path:
    """DPT, as Intel/dpt-large: every picture becomes a square."""
    torch.manual_seed(1)
    model = DPTForDepthEstimation(
        DPTConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
        )
    )
    with torch.no_grad():
        model.head.head[4].bias.fill_(1.0)
        model.head.head[4].weight.normal_(std=2.0)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_segformer(folder: Path, labels: int = 5) -> Path:
    """Segformer for semantic segmentation."""
    torch.manual_seed(2)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=labels,
        )
    )
    with torch.no_grad():
        model.decode_head.classifier.weight.normal_()
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
