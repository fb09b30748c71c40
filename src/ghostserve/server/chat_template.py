"""Turns the messages of a chat request into token ids, through the tokenizer's own chat template."""

from typing import Any

from jinja2 import TemplateError

from ghostserve.server.errors import ApiError, describe
from ghostserve.server.prompts import encode_text
from ghostserve.server.protocol import ChatMessage, ContentPart

__all__ = ["ROLES", "chat_token_ids"]

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def chat_token_ids(messages: list[ChatMessage], tokenizer: Any) -> list[int]:
    """Render the conversation, open the assistant's turn and encode it."""
    if not messages:
        raise ApiError("messages is []: it must hold at least one message", param="messages")
    if tokenizer.chat_template is None:
        raise ApiError("this model's tokenizer has no chat template: use /v1/completions", param="messages")
    conversation = [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ApiError(f"the model's chat template refuses these messages: {error}", param="messages") from error
    # The template has written the special tokens itself.
    return encode_text(text, tokenizer, add_special_tokens=False)


def _plain(message: ChatMessage, where: str) -> dict[str, str]:
    """One message as templates take it: a role and a text."""
    if message.tool_calls:
        raise ApiError(f"{where}.tool_calls: tools are not supported", param=f"{where}.tool_calls")
    if message.role not in ROLES:
        raise ApiError(
            f"{where}.role is {describe(message.role)}: allowed are {', '.join(ROLES)}", param=f"{where}.role"
        )
    if message.content is None:
        raise ApiError(f"{where}.content is null: a text is needed", param=f"{where}.content")
    plain = {"role": ROLES[message.role], "content": _text(message.content, f"{where}.content")}
    return plain if message.name is None else {**plain, "name": message.name}


def _text(content: str | list[ContentPart], where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise ApiError(
                f"{where}[{index}].type is {describe(part.type)}: only parts of type text, with a text, are supported",
                param=f"{where}[{index}]",
            )
        texts.append(part.text)
    return "\n".join(texts)
