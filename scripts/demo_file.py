"""Writes the demo model in the model file format: HDF5, bfloat16 matrices, a checksum on every dataset."""

import json

import h5py
import numpy as np
import torch


def _make_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def crc32c(data):
    """The CRC-32C of bytes; crc32c(b"123456789") is 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def write_dataset(group, name, values, bfloat16):
    """Writes a float tensor, with its checksum; bfloat16 values are stored as uint16."""
    if bfloat16:
        data = values.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16)
    else:
        data = values.float().contiguous().numpy()
    dataset = group.create_dataset(name, data=data)
    if bfloat16:
        dataset.attrs["dtype"] = np.bytes_("bfloat16")
    dataset.attrs["crc32c"] = np.uint32(crc32c(data.tobytes()))


def write_model(path, config, state):
    """Writes the stacked weights [layers, tracks, in, out] as a model file: a group a track, [out, in]."""
    q_size = config["heads"] * config["head_dim"]
    kv_size = config["kv_heads"] * config["head_dim"]
    with h5py.File(path, "w", libver=("v108", "v108")) as file:  # whose metadata bear checksums
        file.attrs["format"] = np.bytes_("ptrt")  # bytes: a string of fixed length
        file.attrs["format_version"] = 1
        file.attrs["config"] = np.bytes_(json.dumps(config))
        file.create_group("tokenizer").attrs["kind"] = np.bytes_("bytes")
        shared = file.create_group("shared")
        write_dataset(shared, "embedding", state["embedding"], True)
        write_dataset(shared, "final_norm", state["final_norm"], False)
        for t in range(config["tracks"]):
            for i in range(config["layers"]):
                layer = file.create_group(f"tracks/{t:02d}/layers/{i:03d}")
                write_dataset(layer, "attn_norm", state["attn_norm"][i, t, 0], False)
                write_dataset(layer, "ffn_norm", state["ffn_norm"][i, t, 0], False)
                qkv = state["w_qkv"][i, t].T.split((q_size, kv_size, kv_size))
                gate, up = state["w_gate_up"][i, t].T.chunk(2)
                matrices = dict(zip(("wq", "wk", "wv"), qkv), wo=state["wo"][i, t].T,
                                w_gate=gate, w_up=up, w_down=state["w_down"][i, t].T)
                for name, values in matrices.items():
                    write_dataset(layer, name, values, True)
