"""Hugging Face folders, made on the spot: grown, loaded again by transformers itself, and compared."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from lightning_grow import CheckpointError, GrowError, RefusedGrowth, grow_pretrained
from lightning_grow.errors import WrongSetting
from lightning_grow.formats.pretrained import change_config, make_inputs

transformers.logging.set_verbosity_error()
TEXT = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
DEEP = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
DECODER = {**TEXT, **DEEP, "num_key_value_heads": 2, "max_position_embeddings": 32}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", {**TEXT, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", {**DECODER, "head_dim": 8}),
    "bert": ("BertForMaskedLM", {**TEXT, **DEEP, "max_position_embeddings": 32}),
    "vit": ("ViTForImageClassification", {**DEEP, "image_size": 16, "patch_size": 8}),
    "t5": (
        "T5ForConditionalGeneration",
        {**TEXT, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 4}),
}
IN_FLOAT32 = {"llama": 1e-5, "qwen3": 1e-5, "t5": 1e-5, "mixtral": 1e-5}
"""Models whose norms compute in float32 whatever their type: a few roundings of it; float64's for all others."""
GROWTHS = [
    ("gpt2", {"n_embd": 32, "n_head": 4}),
    ("gpt2", {"hidden_size": 32, "num_attention_heads": 4}),  # by the names that all configs share
    ("gpt2", {"n_layer": 3}),
    ("gpt2", {"n_inner": 96}),
    ("llama", {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}),
    ("llama", {"num_hidden_layers": 4}),
    ("qwen3", {"hidden_size": 32}),
    ("qwen3", {"num_hidden_layers": 3}),  # its layer_types follow
    ("bert", {"hidden_size": 32, "num_attention_heads": 4}),
    ("bert", {"intermediate_size": 30}),
    ("vit", {"hidden_size": 32, "num_attention_heads": 4}),
    ("vit", {"num_hidden_layers": 3}),
    ("t5", {"d_model": 32}),
    ("t5", {"num_layers": 3, "num_decoder_layers": 3}),
    ("mixtral", {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}),
    ("mixtral", {"intermediate_size": 32, "num_hidden_layers": 3}),
]


def build(name, dtype=None):
    dtype = dtype or (torch.float32 if name == "mixtral" else torch.float64)  # whose grouped products know no float64
    architecture, sizes = MODELS[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = cls(cls.config_class(**sizes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # no two units alike, no 0 that hides an error
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(name, folder, dtype=None, **kwargs):
    build(name, dtype).save_pretrained(folder, **kwargs)
    return folder


def logits(folder, name, inputs):
    model = getattr(transformers, MODELS[name][0]).from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        return model(**inputs).logits, model


@pytest.mark.parametrize(("name", "changes"), GROWTHS, ids=lambda item: item if isinstance(item, str) else str(item))
def test_transformers_loads_a_bigger_model_with_the_same_outputs(tmp_path, name, changes):
    small = save(name, tmp_path / "small")
    report = grow_pretrained(small, tmp_path / "large", **changes)
    inputs = make_inputs(build(name))
    expected, before = logits(small, name, inputs)
    got, after = logits(tmp_path / "large", name, inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=IN_FLOAT32.get(name, 1e-10))
    assert after.num_parameters() > before.num_parameters()
    assert report.function_preserving
    written = json.loads((tmp_path / "large" / "config.json").read_text())
    aliases = before.config.attribute_map
    assert {key: written[aliases.get(key, key)] for key in changes} == changes
    assert after.dtype == before.dtype
    assert sorted(item.name for item in tmp_path.iterdir()) == ["large", "small"]


def test_more_words(tmp_path):
    small = save("gpt2", tmp_path / "small")
    with pytest.raises(RefusedGrowth, match="allow_output_growth"):
        grow_pretrained(small, tmp_path / "large", vocab_size=60)
    assert not (tmp_path / "large").exists()
    grow_pretrained(small, tmp_path / "large", options={"allow_output_growth": True}, vocab_size=60)
    inputs = make_inputs(build("gpt2"))
    expected, _ = logits(small, "gpt2", inputs)
    got, _ = logits(tmp_path / "large", "gpt2", inputs)
    torch.testing.assert_close(got[..., :50], expected, rtol=1e-12, atol=1e-12)
    assert got.shape[-1] == 60


def test_shards_half_precision_and_the_tokenizers_files(tmp_path):
    small = save("llama", tmp_path / "small", torch.bfloat16, max_shard_size="4KB")
    assert (small / "model.safetensors.index.json").exists()
    (small / "tokenizer.json").write_text('{"version": "1.0"}')
    (small / "notes").mkdir()
    (tmp_path / "large").mkdir()  # empty, as a user may have made it
    report = grow_pretrained(small, tmp_path / "large", intermediate_size=48)
    assert (tmp_path / "large" / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert any("not copied: notes" in note for note in report.notes)
    inputs = make_inputs(build("llama"))
    expected, _ = logits(small, "llama", inputs)
    got, model = logits(tmp_path / "large", "llama", inputs)
    assert torch.equal(got, expected)  # new columns are read with 0
    assert model.dtype == torch.bfloat16
    assert len(list((tmp_path / "large").glob("*.safetensors"))) == 1


def test_a_part_of_a_config_and_lists_that_follow():
    config = AutoConfig.for_model("clip", text_config={"hidden_size": 16}, vision_config={"hidden_size": 24})
    changed = change_config(config, {"text_config.hidden_size": 32})
    assert (changed.text_config.hidden_size, changed.vision_config.hidden_size) == (32, 24)
    qwen = AutoConfig.for_model("qwen3", num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    assert change_config(qwen, {"hidden_size": 32}).layer_types == ["full_attention", "sliding_attention"]


def spoil(folder, how):
    if how == "unknown class":
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "architectures": ["NoSuchModel"]}))
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "a list":
        (folder / "config.json").write_text("[]")
    elif how == "another class":
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "architectures": ["GPT2ForTokenClassification"]}))
    elif how == "pickled":
        torch.save({}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif how == "cut short":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unknown class", "NoSuchModel, which transformers .* does not have.*grow it in memory"),
        ("no config", "config.json cannot be read.*save_pretrained"),
        ("a list", "holds a list, and should hold an object"),
        ("another class", "weights are missing for a GPT2ForTokenClassification, e.g. 'classifier"),
        ("pickled", "cannot be loaded"),
        ("cut short", "cannot be loaded"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, how, message):
    small = save("gpt2", tmp_path / "small")
    spoil(small, how)
    with pytest.raises(CheckpointError, match=message):
        grow_pretrained(small, tmp_path / "large", n_layer=3)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("gpt2", {"n_embed": 32}, WrongSetting, r"no entry 'n_embed'. Did you mean one of n_embd"),
        ("gpt2", {"n_head": 3}, RefusedGrowth, r"cannot be built with n_head=3 .*divisible"),
        ("bert", {"num_hidden_layers": 3}, RefusedGrowth, "new layers 'bert.encoder.layer.2' change the function"),
        ("vit", {"image_size": 32}, RefusedGrowth, "resampled ones are not exact.*interpolate_pos_encoding"),
    ],
)
def test_what_cannot_grow_is_refused(tmp_path, name, changes, error, message):
    small = save(name, tmp_path / "small")
    with pytest.raises(error, match=message):
        grow_pretrained(small, tmp_path / "large", **changes)
    assert [item.name for item in tmp_path.iterdir()] == ["small"]


def test_nothing_is_overwritten(tmp_path):
    small = save("gpt2", tmp_path / "small")
    with pytest.raises(CheckpointError, match="is there already"):
        grow_pretrained(small, small, n_layer=3)
    with pytest.raises(TypeError, match="no option 'sed'"):
        grow_pretrained(small, tmp_path / "large", options={"sed": 1})


def test_what_was_written_wrongly_does_not_stay(tmp_path, monkeypatch):
    small = save("gpt2", tmp_path / "small")
    own = transformers.GPT2LMHeadModel.save_pretrained

    def spoiled(self, folder, *args, **kwargs):
        with torch.no_grad():
            self.transformer.h[0].mlp.c_fc.weight.add_(1)
            own(self, folder, *args, **kwargs)
            self.transformer.h[0].mlp.c_fc.weight.sub_(1)

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "save_pretrained", spoiled)
    with pytest.raises(GrowError, match="1 weights differ"):
        grow_pretrained(small, tmp_path / "large", n_layer=3)
    assert [Path(item).name for item in tmp_path.iterdir()] == ["small"]
