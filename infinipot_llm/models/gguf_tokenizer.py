"""The tokenizer that a GGUF file describes, built the same under every release of transformers.

transformers reads these descriptions differently from release to release: 5.3 takes a byte-level vocabulary of the
llama architecture for Code Llama's, swaps its end mark for its begin mark, and gives Qwen a normaliser. The facts are
few, so they are read from the file itself, and the result is saved as a plain tokenizer.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infinipot_llm.errors import ModelError

# Kinds of token in a GGUF file that must never be cut up: marks of the chat format, and words added by hand.
_CONTROL, _USER_DEFINED = 3, 4

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(gguf: Path) -> Any:
    """Build the tokenizer of a GGUF file as a `PreTrainedTokenizerFast`.

    Args:
        gguf: The GGUF file, with a byte-level vocabulary cut up as that of Qwen 2 or SmolLM.

    Raises:
        ModelError: The file describes another kind of tokenizer.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(gguf)

    def read(key: str) -> Any:
        field = reader.get_field(f"tokenizer.{key}")
        return None if field is None else field.contents()

    kind = (read("ggml.model"), read("ggml.pre"))
    splitters = {("gpt2", "qwen2"): _split_as_qwen2, ("gpt2", "smollm"): _split_as_smollm}
    if kind not in splitters or read("ggml.add_bos_token"):
        raise ModelError(
            f"the tokenizer of {gguf} is of a kind that cannot be read ({kind[0]}, {kind[1]}): use a folder of the "
            "model in safetensors format, which holds a tokenizer.json"
        )
    tokens, types = read("ggml.tokens"), read("ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in read("ggml.merges")]
    core = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = splitters[kind]()
    core.decoder = decoders.ByteLevel()
    marked = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    core.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token, kind in marked])

    roles = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    places = {role: read(f"ggml.{key}_token_id") for key, role in roles.items()}
    named = {role: tokens[place] for role, place in places.items() if place is not None}
    architecture = reader.get_field("general.architecture").contents()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=read("chat_template"),
        model_max_length=int(reader.get_field(f"{architecture}.context_length").contents()),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _split_as_qwen2() -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _split_as_smollm() -> Any:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
