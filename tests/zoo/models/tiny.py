"""Models of transformers in configurations of two small layers, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.models import import_torchvision
from tests.zoo.models.entry import Entry, Made

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "encoder_layers_num"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff"), 64),
    **dict.fromkeys(
        ("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 64
    ),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""What makes a configuration small, where it has the field."""


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ids(length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 99, (2, length), generator=_seeded(seed))


def _text() -> dict[str, Any]:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def _plain_text() -> dict[str, Any]:
    return {"input_ids": _ids()}


def _image(size: int = 32) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=_seeded())}


def _two_texts() -> dict[str, Any]:
    return {**_text(), "decoder_input_ids": _ids(7, seed=1)}


def _wave() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 1600, generator=_seeded())}


def _spectrogram() -> dict[str, Any]:
    features = torch.randn(2, 80, 60, generator=_seeded())
    return {"input_features": features, "decoder_input_ids": _ids(7, seed=1)}


def _image_and_text() -> dict[str, Any]:
    return {**_text(), **_image()}


_WITHOUT_CACHE = {"use_cache": False}
_EIGHTS = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_WAVES = {
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_DETECTOR = {"d_model": 32, "num_queries": 5, "use_timm_backbone": False, "use_pretrained_backbone": False}

Row = tuple[str, Callable[[], dict[str, Any]], dict[str, Any]]

_TEXT_ENCODERS = (
    "Bert Roberta XLMRoberta Albert Electra MPNet ConvBert FNet ModernBert Nystromformer RoFormer DistilBert LayoutLM "
    "SqueezeBert MobileBert DebertaV2 XLNet"
)
_DECODERS = (
    "GPT2 GPTNeoX GPTJ OPT Bloom Llama Mistral Mixtral Qwen2 Qwen3 Qwen2Moe Gemma Gemma2 Phi Phi3 Falcon StableLm "
    "Cohere Olmo2 Granite Starcoder2 Mamba GptOss"
)
_SPECIAL: dict[str, dict[str, Any]] = {
    "SqueezeBert": {"embedding_size": 32},
    "MobileBert": {"embedding_size": 32, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "FNet": {"tpu_short_seq_length": 12},
    "GPTJ": {"rotary_dim": 4},
    "GPTNeoX": {"use_cache": False},
    "ModernBert": {"reference_compile": False, "attn_implementation": "sdpa"},
    "Mamba": {"state_size": 4},
    "XLNet": {"d_inner": 64, "d_head": 8},
}
_IMAGES: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "Beit": {},
    "Dinov2": {},
    "Swin": {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "Swinv2": {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "Hiera": {
        "embed_dim": 16,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "patch_size": [7, 7],
        "image_size": [64, 64],
        "num_query_pool": 2,
    },
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "PoolFormer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "Segformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]},
    "MobileViT": {"patch_size": 2},
    "MobileNetV2": {},
    "ResNet": {**_EIGHTS, "embedding_size": 8},
    "RegNet": {**_EIGHTS, "embedding_size": 8, "groups_width": 8},
    "Bit": {**_EIGHTS, "embedding_size": 8, "num_groups": 4},
    "Levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [16, 24, 32],
        "depths": [1, 1, 1],
        "num_attention_heads": [2, 2, 2],
        "key_dim": [8, 8, 8],
    },
    "Cvt": {"embed_dim": [16, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2]},
    "Pvt": {
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "image_size": 64,
        "patch_size": 4,
    },
    "EfficientNet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "Yolos": {"image_size": [32, 32], "num_detection_tokens": 4},
}
_SIZE = {"Hiera": 64, "Levit": 64, "PoolFormer": 64, "Segformer": 64, "Cvt": 64, "Pvt": 64, "Bit": 64, "MobileViT": 64}
_PAIRS = "T5 UMT5 Bart Pegasus Marian MBart"
_SOUNDS = "Wav2Vec2 Hubert WavLM"


def _rows() -> Iterator[Row]:
    for name in _TEXT_ENCODERS.split():
        yield name, _plain_text if name == "FNet" else _text, _SPECIAL.get(name, {})
    for name in _DECODERS.split():
        yield name, _text, {**_WITHOUT_CACHE, **_SPECIAL.get(name, {})}
    for name in _PAIRS.split():
        yield name, _two_texts, _WITHOUT_CACHE
    for name, options in _IMAGES.items():
        yield name, partial(_image, _SIZE.get(name, 32)), options
    for name in _SOUNDS.split():
        yield name, _wave, _WAVES
    yield "Whisper", _spectrogram, {"max_source_positions": 30, "max_target_positions": 30, **_WITHOUT_CACHE}
    yield "Detr", partial(_image, 64), {**_DETECTOR}
    for name in ("CLIP", "Siglip", "Blip"):
        yield name, _image_and_text, {}
    yield "Vilt", _image_and_text, {}


def entries() -> Iterator[Entry]:
    """Yield one model of each architecture."""
    for name, inputs, options in _rows():
        yield Entry(f"transformers/{name}", partial(_make, name, inputs, options))


def tiny_config(config_class: Any, **options: Any) -> Any:
    """Return a small configuration: `options`, and what of `_SMALL` it has fields for; of its parts too."""
    known = config_class()
    fields = {key: value for key, value in _SMALL.items() if key in known.to_dict()}
    for part in ("text_config", "vision_config"):
        inner = getattr(known, part, None)
        if inner is not None:
            fields[part] = tiny_config(type(inner)).to_dict()
    return config_class(**{**fields, **options})


def _make(name: str, inputs: Callable[[], dict[str, Any]], options: dict[str, Any]) -> Made:
    import_torchvision()  # transformers does not survive an extension that does not fit this PyTorch
    import transformers

    config = tiny_config(getattr(transformers, f"{name}Config"), **options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    return model, (), inputs()
