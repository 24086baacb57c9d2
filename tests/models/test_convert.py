"""A true GGUF of two layers goes through the true conversion; damage of every kind is found afterwards."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from infinipot_llm.errors import ModelError
from infinipot_llm.models import convert
from infinipot_llm.models.catalogue import read_manifest
from infinipot_llm.models.convert import SAMPLES, check_files, convert_gguf, verify_tokenizer
from infinipot_llm.models.gguf_tokenizer import gguf_tokenizer

HIDDEN, FEED, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]  # the last is a word added by hand
MERGES = ["h e", "l l", "he ll", "Ġ w", "i n", "Ġ Ġ", "1 2"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write_gguf(
    path: Path,
    architecture: str,
    *,
    own_output: bool = True,
    without: str = "",
    pre: str = "qwen2",
    begin: bool = False,
) -> dict[str, np.ndarray]:
    """Write a random model with a byte-level vocabulary; return its unpacked weights by their GGUF names."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), *MARKS]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - len(MARKS)) + [3] * (len(MARKS) - 1) + [4])
    writer.add_token_merges(MERGES)
    for place, mark in (("bos", "<|endoftext|>"), ("eos", "<|im_end|>"), ("pad", "<|endoftext|>")):
        getattr(writer, f"add_{place}_token_id")(tokens.index(mark))
    writer.add_add_bos_token(begin)
    writer.add_chat_template(TEMPLATE)

    narrow = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    if own_output:
        shapes["output.weight"] = (len(tokens), HIDDEN)
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HIDDEN, HIDDEN),
            "attn_k.weight": (narrow, HIDDEN),
            "attn_v.weight": (narrow, HIDDEN),
            "attn_output.weight": (HIDDEN, HIDDEN),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (FEED, HIDDEN),
            "ffn_up.weight": (FEED, HIDDEN),
            "ffn_down.weight": (HIDDEN, FEED),
        }
        if architecture == "qwen2":
            block |= {"attn_q.bias": (HIDDEN,), "attn_k.bias": (narrow,), "attn_v.bias": (narrow,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    random = np.random.default_rng(7)
    unpacked = {}
    for name, shape in shapes.items():
        if name == without:
            continue
        values = random.normal(0.0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            unpacked[name] = values
        else:
            kind = gguf.GGMLQuantizationType.Q8_0 if "ffn" in name else gguf.GGMLQuantizationType.Q5_0
            packed = gguf.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            unpacked[name] = gguf.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unpacked


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A qwen2 with an output matrix of its own, like the default model."""
    home = tmp_path_factory.mktemp("converted")
    unpacked = write_gguf(home / "source.gguf", "qwen2")
    convert_gguf(home / "source.gguf", home / "tiny")
    return home / "tiny", unpacked


@pytest.fixture
def copy(converted: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    """The converted folder, to spoil."""
    return Path(shutil.copytree(converted[0], tmp_path / "tiny"))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_every_weight_is_the_unpacked_one(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, unpacked = converted
    found = stored(folder)
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    assert len(found) == len(unpacked)
    for name, values in unpacked.items():
        *block, part, kind = name.split(".")
        place = f"model.layers.{block[1]}.{names[part]}" if block else names[part]
        assert torch.equal(found[f"{place}.{kind}"], torch.from_numpy(values)), name


def test_the_folder_loads_as_any_other(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = converted
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings is False
    assert model.config.eos_token_id == model.generation_config.eos_token_id == ends
    assert model.generation_config.do_sample is False
    assert tokenizer.model_max_length == 512
    assert tokenizer("hello", add_special_tokens=False)["input_ids"] == tokenizer.convert_tokens_to_ids(["hell", "o"])
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    verify_tokenizer(tokenizer, folder)
    check_files(folder, full=True)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("qwen2", ["hell", "o", "Ġ", "Ġw", "in", "Ġ", "Ġ", "1", "2"]),
        ("smollm", ["hell", "o", "Ġ", "Ġw", "in", "ĠĠ", "1", "2"]),  # digits are set apart before anything else
    ],
)
def test_text_is_cut_up_as_the_file_says(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    write_gguf(tmp_path / "source.gguf", "llama", pre=pre)
    tokenizer = gguf_tokenizer(tmp_path / "source.gguf")
    assert tokenizer.tokenize("hello  win  12") == pieces


def test_marks_are_whole_and_only_control_marks_are_special(tmp_path: Path) -> None:
    write_gguf(tmp_path / "source.gguf", "llama")
    tokenizer = gguf_tokenizer(tmp_path / "source.gguf")
    text = "<|im_start|>a<tool_call>b<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", "a", "<tool_call>", "b", "<|im_end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call>b"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("changes", [{"pre": "llama-bpe"}, {"begin": True}])
def test_another_kind_of_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_gguf(tmp_path / "source.gguf", "llama", **changes)
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be read .* safetensors"):
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")


def test_no_trace_of_where_it_was_made(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = converted
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(folder.parent) not in text, path.name
        assert "source.gguf" not in text, path.name
        assert "quantization_config" not in text, path.name


def test_tied_embeddings_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    write_gguf(tmp_path / "source.gguf", "llama", own_output=False, pre="smollm")
    convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")
    assert "lm_head.weight" not in stored(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", local_files_only=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    verify_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "tiny", local_files_only=True), tmp_path / "tiny")


def test_the_manifest_describes_the_folder(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = converted
    manifest = read_manifest(folder)
    assert manifest["name"] == "tiny"
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert [sample["text"] for sample in manifest["tokenizer_samples"]] == list(SAMPLES)
    assert manifest["source_sha256"] == convert._sha256(folder.parent / "source.gguf")


def test_a_flipped_bit_is_found(copy: Path) -> None:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    check_files(copy, full=False)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or missing: delete the folder .*get tiny"):
        check_files(copy, full=True)


@pytest.mark.parametrize("full", [False, True])
def test_a_short_or_missing_file_is_found(copy: Path, full: bool) -> None:
    settings = copy / "config.json"
    settings.write_bytes(settings.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        check_files(copy, full=full)
    settings.unlink()
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        check_files(copy, full=full)


def swap_decoder(core: Any) -> None:
    core.decoder = decoders.Fuse()


def add_a_prefix_space(core: Any) -> None:
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize("spoil", [swap_decoder, add_a_prefix_space])
def test_a_tokenizer_that_reads_or_writes_differently_is_refused(copy: Path, spoil: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy, local_files_only=True)
    spoil(tokenizer.backend_tokenizer)
    with pytest.raises(ModelError, match=r"reads text differently under transformers .*infinipot models get tiny"):
        verify_tokenizer(tokenizer, copy)


def test_a_folder_without_manifest_is_refused(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy, local_files_only=True)
    (copy / "manifest.json").unlink()
    with pytest.raises(ModelError, match="holds no complete model"):
        verify_tokenizer(tokenizer, copy)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source.gguf").write_bytes(b"GGUF and then nothing of use" * 10)
    with pytest.raises(ModelError, match="cannot be read as a language model") as caught:
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source.gguf"}


def test_a_missing_weight_is_not_made_up(tmp_path: Path) -> None:
    write_gguf(tmp_path / "source.gguf", "qwen2", without="blk.1.ffn_up.weight")
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of its model, such as model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "precious").write_text("x")
    with pytest.raises(ModelError, match="exists already"):
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")
    assert (tmp_path / "tiny" / "precious").exists()


@pytest.mark.parametrize("damage", ["value", "missing", "extra"])
def test_weights_that_read_back_differently_are_refused(tmp_path: Path, damage: str) -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2)}
    written = {key: weight.clone() for key, weight in weights.items()}
    if damage == "value":
        written["a"][1] = -0.0  # equal as a number, another bit
    elif damage == "missing":
        del written["b"]
    else:
        written["c"] = torch.ones(1)
    save_file(written, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="do not read back the same"):
        convert._verify_weights(weights, tmp_path, Path("source.gguf"))


def test_an_interruption_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "source.gguf", "qwen2")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")
    assert {path.name for path in tmp_path.iterdir()} == {"source.gguf"}


def test_it_is_silent_and_leaves_the_settings_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_gguf(tmp_path / "source.gguf", "qwen2")
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.INFO)
    bars = transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    try:
        convert_gguf(tmp_path / "source.gguf", tmp_path / "tiny")
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(before)
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "")


def test_samples_are_plain_json(copy: Path) -> None:
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(text)["tokenizer_samples"][0]["ids"]
    assert "élan naïve" in text
