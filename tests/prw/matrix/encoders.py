"""The matrix: encoders, encoder-decoders and multimodal models of transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t

from tests.prw.matrix.family import BATCH, VOCABULARY, Family, encoder, pictures, tokens, vision


def both() -> dict[str, Any]:
    return {**tokens(), "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, 4))}


def sounds() -> dict[str, Any]:
    return {
        "input_features": torch.randn(BATCH, 8, 12),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (BATCH, 4)),
    }


def text_and_picture() -> dict[str, Any]:
    return {**tokens(), "pixel_values": torch.randn(BATCH, 3, 8, 8)}


SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
PART = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SEES = {**PART, "image_size": 8, "patch_size": 4}
READS = {
    **PART,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def pooled(output: Any) -> Any:
    return output.pooler_output


def whole(
    name: str, model: type, config: type, inputs: Any, read: Any = lambda output: output[0], **options: Any
) -> Family:
    keys = options.pop("own_keys", True)
    return Family(name, "transformers", lambda: model(config(**options)), inputs, read, own_keys=keys)


def qformer() -> dict[str, Any]:
    return {"query_embeds": torch.randn(BATCH, 3, 16), "encoder_hidden_states": torch.randn(BATCH, 5, 12)}


def llava() -> dict[str, Any]:
    words = torch.randint(3, VOCABULARY - 1, (BATCH, 8))
    words[:, 1:5] = VOCABULARY - 1
    return {"input_ids": words, "pixel_values": torch.randn(BATCH, 3, 8, 8)}


FAMILIES = [
    encoder("BERT", t.BertModel, t.BertConfig),
    encoder("RoBERTa", t.RobertaModel, t.RobertaConfig),
    encoder(
        "DistilBERT", t.DistilBertModel, t.DistilBertConfig, dim=16, hidden_dim=24, n_layers=2, n_heads=2
    ),
    whole(
        "DeBERTa",
        t.DebertaModel,
        t.DebertaConfig,
        tokens,
        own_keys=False,
        **READS,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
    ),
    encoder(
        "DeBERTa-v2",
        t.DebertaV2Model,
        t.DebertaV2Config,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
    ),
    encoder("ELECTRA", t.ElectraModel, t.ElectraConfig, embedding_size=16),
    encoder(
        "ModernBERT",
        t.ModernBertModel,
        t.ModernBertConfig,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=4,
    ),
    encoder("ALBERT", t.AlbertModel, t.AlbertConfig, embedding_size=16),
    whole(
        "T5",
        t.T5Model,
        t.T5Config,
        both,
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    ),
    whole("BART", t.BartModel, t.BartConfig, both, max_position_embeddings=32, **SEQ),
    whole(
        "Whisper",
        t.WhisperModel,
        t.WhisperConfig,
        sounds,
        num_mel_bins=8,
        max_source_positions=6,
        max_target_positions=16,
        **SEQ,
    ),
    vision("ViT", t.ViTModel, t.ViTConfig),
    vision("DINOv2", t.Dinov2Model, t.Dinov2Config, mlp_ratio=2),
    vision("SigLIP vision", t.SiglipVisionModel, t.SiglipVisionConfig, read=pooled),
    vision("CLIP vision", t.CLIPVisionModel, t.CLIPVisionConfig),
    whole(
        "CLIP",
        t.CLIPModel,
        t.CLIPConfig,
        text_and_picture,
        lambda output: output.logits_per_image,
        text_config=READS,
        vision_config=SEES,
        projection_dim=8,
    ),
    whole(
        "Swin",
        t.SwinModel,
        t.SwinConfig,
        pictures(16),
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
    ),
    whole(
        "BLIP-2 Q-Former",
        t.Blip2QFormerModel,
        t.Blip2QFormerConfig,
        qformer,
        **PART,
        vocab_size=VOCABULARY,
        cross_attention_frequency=1,
        encoder_hidden_size=12,
    ),
    whole(
        "SAM vision",
        t.SamVisionModel,
        t.SamVisionConfig,
        pictures(16),
        own_keys=False,
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        window_size=2,
        global_attn_indexes=[1],
        mlp_dim=24,
    ),
    whole(
        "LLaVA",
        t.LlavaForConditionalGeneration,
        t.LlavaConfig,
        llava,
        lambda output: output.logits,
        vision_config=t.CLIPVisionConfig(**SEES),
        text_config=t.LlamaConfig(**READS),
        image_token_index=VOCABULARY - 1,
        vision_feature_layer=-1,
    ),
]
