"""Kernels and modules small enough for a test."""

import struct
from pathlib import Path

DATA = 0x30_0000  # RAM that tests map


def module(**information):
    """A 64-bit ELF file with a .modinfo section and nothing else."""
    fields = [f"{key}={value}" for key, value in information.items()]
    body = b"\0".join(field.encode() for field in fields) + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    headers_at = 64 + len(body) + len(names)
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQ", 1, 62, 1, 0, 0, headers_at)
    header += struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, 3, 2)
    sections = (
        (0, 0, 0, 0),
        (1, 1, 64, len(body)),
        (10, 3, 64 + len(body), len(names)),
    )
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)
        for name, kind, at, size in sections
    )
    return header + body + names + table


def folder(path: Path, modules, builtin=()):
    """A kernel's module folder; `modules` by file name."""
    (path / "kernel").mkdir(parents=True)
    for name, data in modules.items():
        (path / "kernel" / name).write_bytes(data)
    (path / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    return path


def image(release):
    """The head of a bzImage that says it is a release."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (builder@host) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)
