"""CRC-32C (Castagnoli) of long buffers in numpy.

The buffer is cut into lanes of equal length, whose remainders are computed side by side. Lanes are then joined
in pairs: the left one is shifted by the length of the right one, which is a linear map over GF(2).
"""

from functools import lru_cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 16


def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_TABLE = _byte_table()
_TABLE_OF_INTS = _TABLE.tolist()


def _step(state: np.ndarray, byte: np.ndarray) -> np.ndarray:
    return _TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)


def _apply(tables: np.ndarray, state: np.ndarray) -> np.ndarray:
    """A linear map, given as a table for each byte of a state, applied to every state."""
    return (tables[0][state & 0xFF] ^ tables[1][state >> 8 & 0xFF] ^ tables[2][state >> 16 & 0xFF] ^
            tables[3][state >> 24])


@lru_cache
def _shift(level: int) -> np.ndarray:
    """The map that appends 2**level lanes of zeros."""
    columns = np.uint32(1) << np.arange(32, dtype=np.uint32)  # the images of single bits
    if level == 0:
        for _ in range(_LANE_BYTES):
            columns = _step(columns, np.zeros(32, dtype=np.uint8))
    else:
        half = _shift(level - 1)
        columns = _apply(half, _apply(half, columns))
    tables = np.zeros((4, 256), dtype=np.uint32)
    for bit in range(32):
        has_bit = np.arange(256) >> bit % 8 & 1 == 1
        tables[bit // 8, has_bit] ^= columns[bit]
    return tables


def crc32c_bytewise(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state = _TABLE_OF_INTS[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    if len(data) < 4 * _LANE_BYTES:
        return crc32c_bytewise(data)
    lanes = 1
    while lanes * _LANE_BYTES < len(data):
        lanes *= 2
    # From state 0 leading zeros change nothing; the usual start of all ones is like inverting four bytes.
    padded = np.zeros(lanes * _LANE_BYTES, dtype=np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, dtype=np.uint8)
    padded[start:start + 4] ^= 0xFF
    bytes_of_lane = padded.reshape(lanes, _LANE_BYTES)
    state = np.zeros(lanes, dtype=np.uint32)
    for column in range(_LANE_BYTES):
        state = _step(state, bytes_of_lane[:, column])
    level = 0
    while len(state) > 1:
        state = _apply(_shift(level), state[0::2]) ^ state[1::2]
        level += 1
    return int(state[0]) ^ 0xFFFFFFFF
