"""Kinds of options that several commands have."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from ghostserve.cli.sizes import parse_size

__all__ = ["Ranks", "Size"]


def _size(_: Any, tokens: Sequence[Token]) -> int:
    return parse_size(tokens[0].value)


Ranks = Annotated[int, Parameter(alias="-tp")]
Size = Annotated[int, Parameter(converter=_size, n_tokens=1)]
