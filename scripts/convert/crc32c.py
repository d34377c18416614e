"""CRC-32C (Castagnoli) of long arrays by numpy, at the speed of a few passes over the bytes.

A buffer is a polynomial over GF(2), and its CRC the remainder of a division by a fixed one. In words of 64 bits, these
remainders satisfy

    x^(64 * 5685) = x^(64 * 1362) + x^(64 * 426) + 1
    x^(64 * 290) = x^(64 * 136) + x^(64 * 113) + x^(64 * 107) + x^(64 * 32) + 1

So the leading words may be taken away if they are added (exclusive or) to the words that are 4323, 5259 and 5685 places
later, or 154, 177, 183, 258 and 290. Squaring an equation multiplies its places by two, which gives longer blocks. A
table then divides the few bytes that are left.
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78
_FAR, _NEAR = np.array((4323, 5259, 5685)), np.array((154, 177, 183, 258, 290))
_FOLDS = [tuple(map(int, places)) for places in (16 * _FAR, _FAR, _NEAR)]  # blocks of 553 kB, 35 kB and 1.2 kB


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _byte_table()


def _fold(words: np.ndarray) -> np.ndarray:
    """A shorter array with the same remainder; overwrites words."""
    for places in _FOLDS:
        block, last = places[0], places[-1]
        start = 0
        while len(words) - start > last:
            taken = min(block, len(words) - start - last)
            lead = words[start:start + taken]
            for place in places:
                words[start + place:start + place + taken] ^= lead
            start += taken
        words = words[start:]
    return words


def crc32c(data, crc: int = 0) -> int:
    """The CRC-32C of the bytes of data; crc is that of the bytes before, so that a buffer may come in pieces."""
    view = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray, memoryview)) else (
        np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    state = crc ^ 0xFFFFFFFF
    whole = len(view) // 8 * 8
    if whole > 8 * _FOLDS[-1][-1]:
        words = view[:whole].copy().view("<u8")
        words[0] ^= np.uint64(state)
        state = 0
        head = _fold(words).tobytes()
        view = view[whole:]
    else:
        head = b""
    for byte in head + view.tobytes():
        state = (state >> 8) ^ _TABLE[(state ^ byte) & 0xFF]
    return state ^ 0xFFFFFFFF
