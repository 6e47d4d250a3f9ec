"""Hugging Face models built from tiny configurations, as they come: with their caches, without a padding token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

transformers.logging.set_verbosity_error()
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
DECODER = TOKENS | TEXT | {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}


def randint(*shape: int) -> Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(0))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ids() -> dict[str, Tensor]:
    return {"input_ids": randint(2, 7)}


def two_texts() -> dict[str, Tensor]:
    return {"input_ids": randint(2, 7), "decoder_input_ids": randint(2, 5)}


def waves() -> dict[str, Tensor]:
    return {"input_values": randn(2, 400)}


def series() -> dict[str, Tensor]:
    return {"past_values": randn(2, 32, 3)}


def steps() -> dict[str, Tensor]:
    return {
        "states": randn(2, 4, 5),
        "actions": randn(2, 4, 2),
        "returns_to_go": randn(2, 4, 1),
        "timesteps": randint(2, 4) % 9,
        "attention_mask": torch.ones(2, 4, dtype=torch.float64),
    }


def pixels(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": randn(2, 3, size, size)}


def spectrum() -> dict[str, Tensor]:
    return {"input_features": randn(2, 8, 20), "decoder_input_ids": randint(2, 5)}


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12} | {
    "shared_expert_intermediate_size": 12,
    "experts_implementation": "eager",  # the loop; grouped products, the default, are not there in float64
}
PADDED = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
SPEECH = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
    **{"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
}
VISION = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
    **{"image_size": 32, "patch_size": 8},
}
BACKBONE = {
    **{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    **{"layer_type": "basic", "out_features": ["stage2"]},
}


@dataclass(frozen=True)
class Model:
    """A class, its configuration class, a tiny configuration, and example inputs."""

    kind: str
    config: str
    sizes: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]] = ids

    def build(self, **changed: Any) -> nn.Module:
        sizes = self.sizes | changed
        return getattr(transformers, self.kind)(getattr(transformers, self.config)(**sizes)).double().eval()


@dataclass(frozen=True)
class Growth:
    """What grows, and the refusal that is right where it cannot."""

    changes: dict[str, Any]
    refused: str = ""
    both: dict[str, Any] = field(default_factory=dict)
    outputs: bool = False


MODELS = {
    "GPT-2": Model(
        "GPT2LMHeadModel", "GPT2Config", TOKENS | {"n_positions": 16, "n_embd": 16, "n_head": 4, "n_layer": 2}
    ),
    "Llama": Model("LlamaForCausalLM", "LlamaConfig", DECODER),
    "Mistral": Model("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 4}),
    "Qwen3": Model("Qwen3ForCausalLM", "Qwen3Config", DECODER),
    "Gemma": Model("GemmaForCausalLM", "GemmaConfig", DECODER | {"num_key_value_heads": 1}),
    "BERT": Model("BertModel", "BertConfig", TOKENS | TEXT | {"hidden_size": 16, "intermediate_size": 32}),
    "DistilBERT": Model(
        "DistilBertModel",
        "DistilBertConfig",
        TOKENS | {"dim": 16, "n_heads": 4, "hidden_dim": 32, "n_layers": 2, "max_position_embeddings": 32},
    ),
    "ALBERT": Model(
        "AlbertModel",
        "AlbertConfig",
        TOKENS | TEXT | {"embedding_size": 8, "hidden_size": 16, "intermediate_size": 32},
    ),
    "DeBERTa-v2": Model(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        TOKENS
        | TEXT
        | {"hidden_size": 16, "intermediate_size": 32, "relative_attention": True, "position_buckets": 8}
        | {"pos_att_type": ["p2c", "c2p"]},
    ),
    "T5": Model(
        "T5ForConditionalGeneration",
        "T5Config",
        TOKENS | {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        two_texts,
    ),
    "OPT": Model(
        "OPTForCausalLM", "OPTConfig", TOKENS | TEXT | {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16}
    ),
    "GPT-NeoX": Model(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        TOKENS | TEXT | {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    ),
    "BLOOM": Model("BloomForCausalLM", "BloomConfig", TOKENS | {"hidden_size": 16, "n_head": 4, "n_layer": 2}),
    "Mamba": Model(
        "MambaForCausalLM",
        "MambaConfig",
        TOKENS | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "time_step_rank": 3},
    ),
    "Whisper": Model(
        "WhisperModel",
        "WhisperConfig",
        TOKENS
        | {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8}
        | {"max_source_positions": 10, "max_target_positions": 20, "decoder_start_token_id": 1, "pad_token_id": 0},
        spectrum,
    ),
    "ViT": Model(
        "ViTForImageClassification",
        "ViTConfig",
        {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
        | {"num_hidden_layers": 2, "num_labels": 3},
        pixels,
    ),
    "ConvNeXt": Model(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"image_size": 32, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 3},
        partial(pixels, 32),
    ),
    "Mixtral": Model("MixtralForCausalLM", "MixtralConfig", DECODER | EXPERTS),
    "Qwen2-MoE": Model("Qwen2MoeForCausalLM", "Qwen2MoeConfig", DECODER | EXPERTS),
    "OLMoE": Model("OlmoeForCausalLM", "OlmoeConfig", DECODER | EXPERTS | {"experts_implementation": "batched_mm"}),
    "DeepSeek-V3": Model(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        DECODER
        | EXPERTS
        | {"n_routed_experts": 4, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "n_group": 2}
        | {"qk_rope_head_dim": 4, "v_head_dim": 4, "qk_nope_head_dim": 4, "topk_group": 1, "num_key_value_heads": 4},
    ),
    "GPT-J": Model(
        "GPTJForCausalLM",
        "GPTJConfig",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4, "n_inner": 24},
    ),
    "GPT-Neo": Model(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 32}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 4, "intermediate_size": 24},
    ),
    "Falcon": Model("FalconForCausalLM", "FalconConfig", TOKENS | TEXT | {"hidden_size": 16}),
    "Cohere": Model("CohereForCausalLM", "CohereConfig", DECODER | {"pad_token_id": 0}),
    "MPT": Model(
        "MptForCausalLM", "MptConfig", {"vocab_size": 50, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}
    ),
    "RWKV": Model(
        "RwkvForCausalLM",
        "RwkvConfig",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 32},
    ),
    "RecurrentGemma": Model(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 16}
        | {"intermediate_size": 24, "attention_window_size": 8, "head_dim": 4, "num_key_value_heads": 1},
    ),
    "XLNet": Model(
        "XLNetModel", "XLNetConfig", {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}
    ),
    "Funnel": Model(
        "FunnelModel",
        "FunnelConfig",
        {"vocab_size": 50, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 4, "d_head": 4}
        | {"d_inner": 24},
    ),
    "ModernBERT": Model(
        "ModernBertModel", "ModernBertConfig", TOKENS | TEXT | {"hidden_size": 16, "intermediate_size": 24} | PADDED
    ),
    "Longformer": Model(
        "LongformerModel",
        "LongformerConfig",
        TOKENS | TEXT | {"hidden_size": 16, "intermediate_size": 24, "attention_window": 4} | PADDED,
    ),
    "wav2vec 2.0": Model("Wav2Vec2Model", "Wav2Vec2Config", SPEECH, waves),
    "HuBERT": Model("HubertModel", "HubertConfig", SPEECH, waves),
    "PatchTST": Model(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16}
        | {"num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 24, "prediction_length": 4},
        series,
    ),
    "Decision Transformer": Model(
        "DecisionTransformerModel",
        "DecisionTransformerConfig",
        {"state_dim": 5, "act_dim": 2, "hidden_size": 16, "max_ep_len": 20, "n_layer": 2, "n_head": 4, "n_inner": 24}
        | {"vocab_size": 1, "n_positions": 64},
        steps,
    ),
    "DETR": Model(
        "DetrModel",
        "DetrConfig",
        {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 5}
        | {"backbone_config": BACKBONE, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
        partial(pixels, 32),
    ),
    "DINOv2": Model("Dinov2Model", "Dinov2Config", VISION, partial(pixels, 32)),
    "Swin": Model(
        "SwinModel",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        pixels,
    ),
}

ROTARY = r"has other values at the source's positions .*Take a multiple of the source's size"
MULTIPLE = r"(takes (a var|its statistics) over|cannot be read in shares).*(?i:use a multiple of)"
GROWTHS = [
    ("GPT-2", "width x2", Growth({"n_embd": 32})),
    ("GPT-2", "width x1.5, heads", Growth({"n_embd": 24, "n_head": 6})),
    ("GPT-2", "inner width", Growth({"n_inner": 96})),
    ("GPT-2", "depth", Growth({"n_layer": 3})),
    ("Llama", "inner width", Growth({"intermediate_size": 40})),
    ("Llama", "width x1.5", Growth({"hidden_size": 24})),
    (
        "Llama",
        "width x1.5, groups and heads",
        Growth({"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ),
    (
        "Llama",
        "one group of two heads to two groups",
        Growth(
            {"num_attention_heads": 4, "num_key_value_heads": 2},
            both={"num_attention_heads": 2, "num_key_value_heads": 1},
        ),
    ),
    ("Llama", "width x1.5, tied", Growth({"hidden_size": 24}, both={"tie_word_embeddings": True})),
    ("Llama", "depth", Growth({"num_hidden_layers": 3})),
    ("Llama", "head size under RoPE", Growth({"head_dim": 8})),
    ("Mistral", "width x1.5, heads", Growth({"hidden_size": 24, "num_attention_heads": 8})),
    ("Qwen3", "width x1.5, heads", Growth({"hidden_size": 24, "num_attention_heads": 8, "num_key_value_heads": 4})),
    ("Qwen3", "head size under RoPE", Growth({"head_dim": 8})),
    ("Qwen3", "head size under RoPE, x1.5", Growth({"head_dim": 6}, refused=ROTARY)),
    ("Gemma", "width x1.5", Growth({"hidden_size": 24, "intermediate_size": 40})),
    ("Gemma", "heads of one group", Growth({"num_attention_heads": 6})),
    ("BERT", "inner width", Growth({"intermediate_size": 48})),
    ("BERT", "width x2", Growth({"hidden_size": 32, "intermediate_size": 64}, outputs=True)),
    ("BERT", "width x2, heads", Growth({"hidden_size": 32, "num_attention_heads": 8}, outputs=True)),
    ("BERT", "width x1.5 (post-norm)", Growth({"hidden_size": 24, "num_attention_heads": 6}, MULTIPLE, outputs=True)),
    ("DistilBERT", "inner width", Growth({"hidden_dim": 48})),
    ("DistilBERT", "width x2", Growth({"dim": 32, "n_heads": 8}, outputs=True)),
    ("ALBERT", "inner width of a shared layer", Growth({"intermediate_size": 48})),
    ("ALBERT", "factorised embedding", Growth({"embedding_size": 16})),
    ("DeBERTa-v2", "width x2, heads", Growth({"hidden_size": 32, "num_attention_heads": 8})),
    ("DeBERTa-v2", "depth (post-norm)", Growth({"num_hidden_layers": 3}, refused="stands behind the residual sum")),
    ("T5", "heads, inner width", Growth({"num_heads": 6, "d_ff": 48})),
    ("T5", "width x1.5", Growth({"d_model": 24}, outputs=True)),
    ("T5", "head size", Growth({"d_kv": 6})),
    ("OPT", "inner width", Growth({"ffn_dim": 48})),
    ("OPT", "width x1.5, heads", Growth({"hidden_size": 24, "num_attention_heads": 6, "word_embed_proj_dim": 24})),
    ("GPT-NeoX", "inner width", Growth({"intermediate_size": 48})),
    ("GPT-NeoX", "width x2, heads", Growth({"hidden_size": 32, "num_attention_heads": 4})),
    ("BLOOM", "width x2", Growth({"hidden_size": 32})),
    ("BLOOM", "heads under ALiBi", Growth({"hidden_size": 32, "n_head": 8})),
    ("Mamba", "expansion", Growth({"expand": 3})),
    ("Mamba", "state", Growth({"state_size": 6})),
    ("Mamba", "width x1.5", Growth({"hidden_size": 24})),
    ("Whisper", "inner width", Growth({"encoder_ffn_dim": 48})),
    (
        "Whisper",
        "width x2, heads",
        Growth({"d_model": 32, "encoder_attention_heads": 8, "decoder_attention_heads": 8}, outputs=True),
    ),
    (
        "Whisper",
        "width x1.5 behind a GELU",
        Growth({"d_model": 24, "encoder_attention_heads": 6, "decoder_attention_heads": 6}, MULTIPLE, outputs=True),
    ),
    ("ViT", "width x2, inner width", Growth({"hidden_size": 32, "intermediate_size": 48})),
    ("ViT", "width x1.5, heads", Growth({"hidden_size": 24, "num_attention_heads": 6})),
    ("ViT", "depth", Growth({"num_hidden_layers": 3})),
    ("ConvNeXt", "width x2", Growth({"hidden_sizes": [16, 32, 32, 32]})),
    ("ConvNeXt", "width x1.5 (post-norm)", Growth({"hidden_sizes": [12, 24, 24, 24]}, refused=MULTIPLE)),
    ("ConvNeXt", "depth", Growth({"depths": [1, 2, 1, 1]})),
    ("Swin", "inner width", Growth({"mlp_ratio": 6.0})),
    ("Swin", "width x2, heads", Growth({"embed_dim": 16, "num_heads": [4, 4]}, outputs=True)),
    ("Mixtral", "experts' inner width", Growth({"intermediate_size": 40})),
    ("Mixtral", "width x2, heads", Growth({"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4})),
    ("Mixtral", "depth", Growth({"num_hidden_layers": 3})),
    (
        "Mixtral",
        "more experts",
        Growth({"num_experts": 8, "num_local_experts": 8}, refused="goes by position|cannot be read in shares"),
    ),
    ("Qwen2-MoE", "experts' inner width", Growth({"moe_intermediate_size": 20})),
    ("Qwen2-MoE", "shared expert", Growth({"shared_expert_intermediate_size": 20})),
    ("Qwen2-MoE", "width x1.5", Growth({"hidden_size": 24})),
    ("OLMoE", "experts' inner width", Growth({"intermediate_size": 40})),
    ("OLMoE", "depth", Growth({"num_hidden_layers": 3})),
    ("DeepSeek-V3", "experts' inner width", Growth({"moe_intermediate_size": 20})),
    ("DeepSeek-V3", "width x2", Growth({"hidden_size": 32})),
    ("DeepSeek-V3", "depth", Growth({"num_hidden_layers": 3})),
    ("GPT-J", "inner width", Growth({"n_inner": 40})),
    ("GPT-J", "width x2, heads", Growth({"n_embd": 32, "n_head": 8})),
    ("GPT-Neo", "depth", Growth({"num_layers": 4, "attention_types": [[["global", "local"], 2]]})),
    ("Falcon", "head size under RoPE", Growth({"hidden_size": 32})),
    ("Falcon", "heads", Growth({"hidden_size": 32, "num_attention_heads": 8})),
    ("OPT", "depth", Growth({"num_hidden_layers": 3})),
    ("Cohere", "depth", Growth({"num_hidden_layers": 3})),
    ("Cohere", "head size under RoPE", Growth({"head_dim": 8})),
    ("MPT", "heads under ALiBi", Growth({"d_model": 32, "n_heads": 8})),
    ("RWKV", "depth", Growth({"num_hidden_layers": 3})),
    ("RecurrentGemma", "recurrent width", Growth({"lru_width": 32})),
    ("XLNet", "inner width", Growth({"d_inner": 40})),
    ("Funnel", "heads", Growth({"n_head": 6})),
    ("ModernBERT", "inner width", Growth({"intermediate_size": 40})),
    ("ModernBERT", "depth", Growth({"num_hidden_layers": 3})),
    ("Longformer", "inner width", Growth({"intermediate_size": 40})),
    ("RWKV", "width x2", Growth({"hidden_size": 32})),
    ("BERT", "depth (post-norm)", Growth({"num_hidden_layers": 3}, refused="new layers .* change the function")),
    ("wav2vec 2.0", "inner width", Growth({"intermediate_size": 40})),
    ("wav2vec 2.0", "convolutions", Growth({"conv_dim": (16, 16)}, outputs=True)),
    ("HuBERT", "inner width", Growth({"intermediate_size": 40})),
    ("PatchTST", "inner width", Growth({"ffn_dim": 40})),
    ("PatchTST", "width x2, heads", Growth({"d_model": 32, "num_attention_heads": 8})),
    ("Decision Transformer", "depth", Growth({"n_layer": 3})),
    ("Decision Transformer", "width x2, heads", Growth({"hidden_size": 32, "n_head": 8}, outputs=True)),
    ("DETR", "inner width", Growth({"encoder_ffn_dim": 40, "decoder_ffn_dim": 40})),
    (
        "DETR",
        "queries",
        Growth({"num_queries": 8}, refused="takes a max over|cannot be read in shares", outputs=True),
    ),
    ("DINOv2", "width x2, heads", Growth({"hidden_size": 32, "num_attention_heads": 8}, outputs=True)),
    ("DINOv2", "depth", Growth({"num_hidden_layers": 3})),
]


def make(name: str, growth: Growth, device: str = "cpu") -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """A trained-looking source, a fresh target, and the arguments of `grow`."""
    model = MODELS[name]
    torch.manual_seed(0)
    source = model.build(**growth.both)
    with torch.device(device):
        target = model.build(**{**growth.both, **growth.changes})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.15))
    options = {"example_inputs": model.inputs(), "allow_output_growth": growth.outputs}
    return source, target, options
