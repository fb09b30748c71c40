"""Token ids to text, one at a time, without ever sending half a character."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Detokenizer"]

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6


class Detokenizer:
    """Decodes a growing sequence of tokens by the prefix-offset method.

    Two decodes of the same short window, with and without the new tokens, differ by the new text: so whatever
    a decoder does at the start of a text (dropping a leading space, for one) cancels out. Text that ends in
    U+FFFD may be a character whose last bytes are still to come, so it is held back until a later token or
    `flush` settles it.
    """

    def __init__(self, tokenizer: Any, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        context = list(prompt_token_ids[-CONTEXT_TOKENS:])
        # A prompt that ends inside a character can't be a context: its last character would change later.
        if self._decode(context).endswith(REPLACEMENT):
            context = []
        self._window = context
        self._known = len(context)  # tokens of the window whose text has been returned
        self._known_text = self._decode(context)

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is settled by it, often but not always non-empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._known_text):
            return ""
        fresh = text[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return fresh

    def flush(self) -> str:
        """The text still held back, when no more tokens come."""
        text = self._decode(self._window)
        fresh = text[len(self._known_text) :]
        self._known = len(self._window)
        self._known_text = text
        return fresh

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
