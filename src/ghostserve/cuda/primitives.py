"""What generated kernels are made of: multiplication by x and the slot checksum, on words of four bytes."""

import triton
import triton.language as tl

__all__ = ["double", "hash_words", "xor"]


@triton.jit
def double(x):
    """Multiply each of the four bytes of uint32 words by x in GF(2^8), polynomial 0x11d."""
    carry = (x >> 7) & 0x01010101
    return ((x & 0x7F7F7F7F) << 1) ^ (carry * 0x1D)


@triton.jit
def hash_words(x, weights, total, WORDS: tl.constexpr, GROUP: tl.constexpr):  # noqa: N803
    """Add uint32 words x (E, WORDS) times their weights (E or 1, WORDS) to uint64 `total` (E, WORDS / GROUP).

    GROUP neighbours are what one thread has loaded: summing them takes no exchange between threads.
    """
    products = x.to(tl.uint64) * weights.to(tl.uint64)
    return total + tl.sum(tl.reshape(products, [x.shape[0], WORDS // GROUP, GROUP]), 2)


@triton.jit
def xor(a, b):
    """For scans."""
    return a ^ b
