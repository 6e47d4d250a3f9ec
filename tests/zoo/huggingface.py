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


def pixels(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": randn(2, 3, size, size)}


def spectrum() -> dict[str, Tensor]:
    return {"input_features": randn(2, 8, 20), "decoder_input_ids": randint(2, 5)}


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
    "Swin": Model(
        "SwinModel",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        pixels,
    ),
}

ROTARY = r"has other values at the source's positions .*number of heads instead of the head size"
MULTIPLE = r"(takes a var over|cannot be read in shares).*(?i:use a multiple of)"
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
]


def make(name: str, growth: Growth) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """A trained-looking source, a fresh target, and the arguments of `grow`."""
    model = MODELS[name]
    torch.manual_seed(0)
    source, target = model.build(**growth.both), model.build(**growth.both, **growth.changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in source.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.15))
    options = {"example_inputs": model.inputs(), "allow_output_growth": growth.outputs}
    return source, target, options
