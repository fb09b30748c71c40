"""Single tokens as text and bytes, for logprobs."""

import re
from typing import Any

__all__ = ["TokenText"]

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenText:
    """What one token id stands for. A token may be part of a character: then only its bytes are exact."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)  # only fast tokenizers have one
        byte_level = type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
        self._alphabet = _byte_level_alphabet() if byte_level else {}

    def text(self, token_id: int) -> str:
        """The token's text; special tokens are shown."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def bytes(self, token_id: int) -> list[int]:
        """The token's bytes: joined over tokens they give the text's UTF-8."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if byte := BYTE_TOKEN.fullmatch(piece):
            return [int(byte[1], 16)]
        if self._alphabet and all(character in self._alphabet for character in piece):
            return [self._alphabet[character] for character in piece]
        return list(self.text(token_id).encode())


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable ones as they are, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
