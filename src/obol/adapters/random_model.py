"""Writes a llama model with random weights: small enough to be made anywhere, real enough for llama.cpp to serve.

Byte-level vocabulary, two layers, half a megabyte. The text is gibberish by design, but readable: one coordinate of
every embedding is a constant, through which the output weights act as a bias towards small letters and blanks.
An answer therefore ends at the asked number of tokens, or when the context is full. The same bytes on every machine.

Needs the extra `demo` (gguf, numpy).
"""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

MODEL_NAME = "tiny-random"
CONTEXT_TOKENS = 2048

_EMBEDDING, _HEADS, _LAYERS, _FEED_FORWARD = 64, 4, 2, 128
_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_END_OF_TURN, _BEGIN = 257, 258
_LIKELY = b" abcdefghijklmnopqrstuvwxyz"
_CONSTANT, _LIKELY_BIAS, _UNLIKELY_BIAS = 8.0, 2.0, -4.0
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Tensor = npt.NDArray[np.float32]


def write_random_model(path: Path) -> None:
    """Writes the file at once or not at all. Raises `OSError` when the disk does not let us."""
    unfinished = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _describe(writer)
    for name, tensor in _tensors().items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def _describe(writer: gguf.GGUFWriter) -> None:
    tokens = [*_byte_tokens(), *_CONTROL_TOKENS]
    writer.add_name(MODEL_NAME)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(_CONTROL_TOKENS))
    writer.add_token_merges(["h e"])  # llama.cpp wants one; its result is no token, so it never applies
    writer.add_bos_token_id(_BEGIN)
    writer.add_eos_token_id(_END_OF_TURN)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins: a byte that prints stands for itself, the others for characters from 256 on."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in prints]
    return [chr(byte) if byte in prints else chr(256 + others.index(byte)) for byte in range(256)]


def _tensors() -> dict[str, Tensor]:
    generator = np.random.default_rng(402)

    def weights(rows: int, columns: int, scale: float = 0.2) -> Tensor:
        return (generator.standard_normal((rows, columns)) * scale).astype(np.float32)

    vocabulary = 256 + len(_CONTROL_TOKENS)
    tensors = {
        "token_embd.weight": weights(vocabulary, _EMBEDDING, 1.0),
        "output_norm.weight": np.ones(_EMBEDDING, np.float32),
        "output.weight": weights(vocabulary, _EMBEDDING),
    }
    tensors["token_embd.weight"][:, 0] = _CONSTANT
    tensors["output.weight"][:, 0] = _UNLIKELY_BIAS
    tensors["output.weight"][list(_LIKELY), 0] = _LIKELY_BIAS
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"{block}{norm}.weight"] = np.ones(_EMBEDDING, np.float32)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{block}{part}.weight"] = weights(_EMBEDDING, _EMBEDDING)
        for part in ("ffn_gate", "ffn_up"):
            tensors[f"{block}{part}.weight"] = weights(_FEED_FORWARD, _EMBEDDING)
        tensors[f"{block}ffn_down.weight"] = weights(_EMBEDDING, _FEED_FORWARD, 0.05)
    return tensors
