"""The matrix: causal language models of transformers."""

from __future__ import annotations

import transformers as t

from tests.prw.matrix.family import Family, language

GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 24}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}


def falcon(name: str, **options: object) -> Family:
    return language(name, t.FalconForCausalLM, t.FalconConfig, ffn_hidden_size=24, **options)


FAMILIES = [
    language("Llama", t.LlamaForCausalLM, t.LlamaConfig, **GROUPED),
    language("Mistral", t.MistralForCausalLM, t.MistralConfig, **GROUPED),
    language("Mixtral", t.MixtralForCausalLM, t.MixtralConfig, **GROUPED, **EXPERTS),
    language("Qwen2", t.Qwen2ForCausalLM, t.Qwen2Config, **GROUPED),
    language("Qwen3", t.Qwen3ForCausalLM, t.Qwen3Config, **GROUPED, head_dim=4),
    language("Gemma 2", t.Gemma2ForCausalLM, t.Gemma2Config, **GROUPED, head_dim=4),
    language("Gemma 3", t.Gemma3ForCausalLM, t.Gemma3TextConfig, **GROUPED, head_dim=4),
    language("Phi-3", t.Phi3ForCausalLM, t.Phi3Config, **GROUPED),
    language("GPT-2", t.GPT2LMHeadModel, t.GPT2Config, **GPT),
    language("GPT-NeoX", t.GPTNeoXForCausalLM, t.GPTNeoXConfig),
    language("GPT-J", t.GPTJForCausalLM, t.GPTJConfig, **GPT, rotary_dim=4),
    language("CodeGen", t.CodeGenForCausalLM, t.CodeGenConfig, **GPT, rotary_dim=4),
    language("StarCoder, multi-query", t.GPTBigCodeForCausalLM, t.GPTBigCodeConfig, **GPT),
    language("StarCoder, multi-head", t.GPTBigCodeForCausalLM, t.GPTBigCodeConfig, **GPT, multi_query=False),
    falcon("Falcon, multi-query", new_decoder_architecture=False, multi_query=True),
    falcon("Falcon, multi-head", new_decoder_architecture=False, multi_query=False),
    falcon("Falcon, grouped", new_decoder_architecture=True, num_kv_heads=2),
    language("Bloom", t.BloomForCausalLM, t.BloomConfig, n_layer=2, n_head=4),
    language("MPT", t.MptForCausalLM, t.MptConfig, d_model=16, n_heads=4, n_layers=2, max_seq_len=32),
    language(
        "OPT", t.OPTForCausalLM, t.OPTConfig, ffn_dim=24, word_embed_proj_dim=16, do_layer_norm_before=True
    ),
    language("Persimmon", t.PersimmonForCausalLM, t.PersimmonConfig),
    language("StableLM", t.StableLmForCausalLM, t.StableLmConfig, **GROUPED),
    language("OLMo 2", t.Olmo2ForCausalLM, t.Olmo2Config, **GROUPED),
    language("Cohere", t.CohereForCausalLM, t.CohereConfig, **GROUPED),
    language("Granite", t.GraniteForCausalLM, t.GraniteConfig, **GROUPED),
    language("DeepSeek-V3", t.DeepseekV3ForCausalLM, t.DeepseekV3Config, **LATENT),
    language(
        "DBRX",
        t.DbrxForCausalLM,
        t.DbrxConfig,
        d_model=16,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 8, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 16},
    ),
]
