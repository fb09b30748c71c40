"""A store over a store that strangers reach: they can neither read what is in it nor put anything in that is believed.

Names are MACs of keys: without the secret nobody knows where a rank will look. Values are encrypted (what gloo
writes is how its ranks are reached) and carry a MAC over key and value. SHA-3's XOF is the cipher's key stream.
"""

import hashlib
import hmac
import secrets
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from ghostserve.errors import GhostServeError

__all__ = ["SealBrokenError", "SealedStore"]

_NONCE, _MAC = 16, 32


class SealBrokenError(GhostServeError, RuntimeError):
    """What is in the store was not written by a member of the group."""


class SealedStore(Store):
    """As much of a store as gloo uses. Keep a reference as long as a process group uses it: C++ keeps only its half."""

    def __init__(self, inner: Store, secret: str) -> None:
        """`secret`: what the members share; any text that can't be guessed."""
        super().__init__()
        self._inner = inner
        self._secret = secret.encode()

    def set(self, key: str, value: str | bytes) -> None:
        plain = value.encode() if isinstance(value, str) else bytes(value)
        nonce = secrets.token_bytes(_NONCE)
        sealed = nonce + self._crypt(key, nonce, plain)
        self._inner.set(self._name(key), self._mac(b"value", key.encode(), sealed) + sealed)  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        """Waits for the key. Raises `SealBrokenError` for a value that no member has written under it."""
        found = self._inner.get(self._name(key))
        mac, sealed = found[:_MAC], found[_MAC:]
        if not hmac.compare_digest(mac, self._mac(b"value", key.encode(), sealed)):
            raise SealBrokenError(f"the rendezvous has a value of {len(found)} bytes that no member wrote: {key}")
        return self._crypt(key, sealed[:_NONCE], sealed[_NONCE:])

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Raises `RuntimeError` (torch's) when the time is over or the store is gone."""
        names = [self._name(key) for key in keys]
        if timeout is None:
            self._inner.wait(names)
        else:
            self._inner.wait(names, timeout)

    def check(self, keys: list[str]) -> bool:
        return bool(self._inner.check([self._name(key) for key in keys]))

    def delete_key(self, key: str) -> bool:
        return bool(self._inner.delete_key(self._name(key)))

    def set_timeout(self, timeout: timedelta) -> None:
        self._inner.set_timeout(timeout)

    def _name(self, key: str) -> str:
        return self._mac(b"name", key.encode()).hex()

    def _mac(self, *parts: bytes) -> bytes:
        mac = hmac.new(self._secret, digestmod="sha256")
        for part in parts:
            mac.update(len(part).to_bytes(8, "big") + part)
        return mac.digest()

    def _crypt(self, key: str, nonce: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(self._mac(b"stream", key.encode(), nonce)).digest(len(data))
        return bytes(a ^ b for a, b in zip(data, stream, strict=True))
