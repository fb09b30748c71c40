"""Detokenising and stop strings: whatever is sent in pieces is what would have been sent at once."""

from hypothesis import given, settings
from hypothesis import strategies as st
from server_fakes import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ghostserve.sampling import SamplingParams, TokenOutput
from ghostserve.server.detokenizer import Detokenizer
from ghostserve.server.generation import ChoiceSpec, ChoiceText
from ghostserve.server.stop import StopBuffer
from ghostserve.server.token_text import TokenText

TOKENIZER = make_tokenizer()
PROMPT = TOKENIZER.encode("the ghost")
token_ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30)
texts = st.text(alphabet=st.sampled_from("ab the🙂é東\n"), max_size=30)


def whole(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def byte_tokens(text: str) -> list[int]:
    """One token a byte, so that every character of several bytes is cut."""
    split = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) if text else []
    return [TOKENIZER.convert_tokens_to_ids(character) for piece, _ in split for character in piece]


def expected_stop(text: str, stops: list[str]) -> str:
    """The rule, one character at a time: the stop string that is complete first ends the text."""
    for end in range(len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start]
    return text


@settings(deadline=None)
@given(token_ids)
def test_pieces_join_to_the_whole_decode(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER, PROMPT)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == whole(ids)


@settings(deadline=None)
@given(texts)
def test_no_half_character_is_ever_sent(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER, PROMPT)
    pieces = [detokenizer.push(token) for token in byte_tokens(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


@settings(deadline=None)
@given(texts, st.lists(st.text(alphabet="ab the", min_size=1, max_size=4), max_size=4), st.data())
def test_stop_strings_do_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    buffer = StopBuffer(stops)
    sent, found = "", None
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, found = buffer.push(text[start:end])
        sent += piece
        if found is not None:
            break
    sent += "" if found else buffer.flush()
    assert sent == expected_stop(text, stops)


@settings(max_examples=200, deadline=None)
@given(token_ids, st.lists(st.text(alphabet="ab theé🙂", min_size=1, max_size=3), max_size=4))
def test_tokens_to_text_with_stops(ids: list[int], stops: list[str]) -> None:
    spec = ChoiceSpec(index=0, request_id="r", prompt_token_ids=PROMPT, params=SamplingParams(), stop=tuple(stops))
    choice = ChoiceText(TOKENIZER, spec)
    sent = ""
    for position, token in enumerate(ids):
        last = position == len(ids) - 1
        delta = choice.push(TokenOutput(token, None, (), "length" if last else None))
        sent += delta.text
        if delta.finish_reason is not None:
            break
    assert sent == expected_stop(whole(ids), stops)


def test_a_prompt_that_ends_inside_a_character_is_no_context() -> None:
    detokenizer = Detokenizer(TOKENIZER, byte_tokens("🙂")[:2])
    assert "".join(map(detokenizer.push, TOKENIZER.encode("ok"))) == "ok"


def test_bytes_of_tokens_join_to_the_text() -> None:
    texts = TokenText(TOKENIZER)
    ids = TOKENIZER.encode("naïve 🙂 東")
    assert bytes(byte for token in ids for byte in texts.bytes(token)).decode() == "naïve 🙂 東"
    assert [texts.bytes(token) for token in byte_tokens("🙂")] == [[byte] for byte in "🙂".encode()]
    assert texts.text(TOKENIZER.eos_token_id) == "<|im_end|>"


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama 2's kind: words begin with a mark, the text's first space is dropped, bytes are tokens."""
    vocab = {piece: i for i, piece in enumerate(["▁the", "▁ghost", "s", *map("<0x{:02X}>".format, range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_decoder_that_drops_the_first_space() -> None:
    tokenizer = sentencepiece_like()
    after_a_prompt, alone = Detokenizer(tokenizer, [0]), Detokenizer(tokenizer)
    assert [after_a_prompt.push(token) for token in (1, 2, 0)] == [" ghost", "s", " the"]
    assert [alone.push(token) for token in (1, 2, 0)] == ["ghost", "s", " the"]


def test_characters_of_byte_tokens() -> None:
    tokenizer = sentencepiece_like()
    detokenizer, texts = Detokenizer(tokenizer, [0]), TokenText(tokenizer)
    ids = [3 + byte for byte in "🙂é".encode()]
    assert [detokenizer.push(token) for token in [*ids, 1]] == ["", "", "", "🙂", "", "é", " ghost"]
    assert [texts.bytes(token) for token in ids] == [[byte] for byte in "🙂é".encode()]
    assert texts.text(1).strip() == "ghost"
