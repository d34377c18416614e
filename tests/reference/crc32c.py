"""CRC-32C (Castagnoli) of long buffers in numpy.

The buffer is cut into lanes of equal length, whose remainders are computed side by side. Lanes are then joined
in pairs: the left one is shifted by the length of the right one, which is a linear map over GF(2).
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 256


def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_TABLE = _byte_table()


def _step(state: np.ndarray, byte: np.ndarray) -> np.ndarray:
    return _TABLE[(state ^ byte) & 0xFF] ^ (state >> 8)


def _apply(columns: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The map whose image of bit i is columns[i], applied to every state."""
    out = np.zeros_like(state)
    for bit in range(32):
        out ^= np.where((state >> bit) & 1, columns[bit], 0).astype(np.uint32)
    return out


def crc32c_bytewise(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state = int(_TABLE[(state ^ byte) & 0xFF]) ^ (state >> 8)
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
    shift = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(_LANE_BYTES):
        shift = _step(shift, np.zeros(32, dtype=np.uint8))
    while len(state) > 1:
        state = _apply(shift, state[0::2]) ^ state[1::2]
        shift = _apply(shift, shift)
    return int(state[0]) ^ 0xFFFFFFFF
