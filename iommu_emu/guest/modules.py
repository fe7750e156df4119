"""Kernel modules: found in a kernel's module folder, put in the order in which they load.

A kernel's package has no modules.dep (depmod makes it where the package is installed), so the
dependencies are read from the modules themselves, as depmod does.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iommu_emu.guest.errors import GuestError, MissingDriverError

__all__ = ["Module", "ModuleFolder", "module_information"]

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_MAX_MODULE = 64 << 20  # bytes; the largest module of a Debian kernel has 12 MiB


@dataclass(frozen=True)
class Module:
    """One module, ready to be loaded.

    Attributes:
        name: as `lsmod` shows it, with underscores.
        data: the ELF file, not compressed.
        release: of the kernel that it is for; "" if it does not say.
    """

    name: str
    data: bytes
    release: str = ""


class ModuleFolder:
    """The folder with the modules of one kernel, /lib/modules/VERSION of its package.

    Args:
        path: the folder; or one with a single such folder below `lib/modules` in it.

    Raises:
        GuestError: if there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise GuestError(
                f"modules: {path} is no folder; give the kernel's /lib/modules/VERSION"
            )
        for below in ("usr/lib/modules", "lib/modules"):
            versions = sorted(p for p in (path / below).glob("*") if p.is_dir())
            if len(versions) == 1:
                path = versions[0]
                break
        self.path = path

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of every module, by name."""
        files = {}
        for path in sorted(self.path.rglob("*.ko*")):
            for suffix in _SUFFIXES:
                if path.name.endswith(suffix):
                    files[_normal(path.name[: -len(suffix)])] = path
        return files

    @cached_property
    def _built_in(self) -> set[str]:
        """Names that modules.builtin lists; without that file, nobody knows."""
        listed = self.path / "modules.builtin"
        if not listed.is_file():
            return set()
        lines = listed.read_text(errors="replace").split()
        return {_normal(Path(line).name.removesuffix(".ko")) for line in lines}

    def load_order(self, names: Iterable[str]) -> list[Module]:
        """Return modules with everything they need, each after what it needs.

        What is built into the kernel is left out.

        Args:
            names: the modules that are wanted.

        Raises:
            MissingDriverError: if one of them, or of what it needs, is not there.
            GuestError: if one cannot be read.
        """
        done: dict[str, Module] = {}
        for name in names:
            self._visit(_normal(name), done, ())
        return list(done.values())

    def _visit(self, name: str, done: dict[str, Module], above: tuple[str, ...]) -> None:
        if name in done or name in above or name in self._built_in:
            return
        path = self._files.get(name)
        if path is None:
            wanted = f" (needed by {above[-1]})" if above else ""
            raise MissingDriverError(
                f"driver {name}{wanted} is neither built into the kernel nor in {self.path}"
            )
        data = _decompressed(path)
        information = module_information(data, path)
        # Soft dependencies are optional by definition: those that are not there are skipped.
        soft = [
            before
            for line in information.get("softdep", [])
            for before in _soft_before(line)
            if before in self._files
        ]
        needed = [_normal(n) for n in ",".join(information.get("depends", [])).split(",") if n]
        for before in (*needed, *soft):
            self._visit(before, done, (*above, name))
        magic = information.get("vermagic", [""])[0]
        done[name] = Module(name, data, magic.partition(" ")[0])


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _soft_before(line: str) -> list[str]:
    """Return the modules that a line "pre: a b post: c" wants loaded first."""
    names, before = [], False
    for word in line.split():
        if word.endswith(":"):
            before = word == "pre:"
        elif before:
            names.append(_normal(word))
    return names


def module_information(data: bytes, path: Path) -> dict[str, list[str]]:
    """Return the keys and values of a module's .modinfo section.

    Args:
        data: a 64-bit little-endian ELF file.
        path: for the message.

    Raises:
        GuestError: if it is no such file.
    """
    try:
        if data[:6] != b"\x7fELF\2\1":
            raise ValueError("no 64-bit ELF file")
        section = _section(data, b".modinfo")
    except (ValueError, OverflowError, struct.error) as error:
        raise GuestError(f"module {path}: {error}") from None
    information: dict[str, list[str]] = {}
    for field in section.split(b"\0"):
        key, equals, value = field.decode("utf-8", "replace").partition("=")
        if equals:
            information.setdefault(key, []).append(value)
    return information


def _section(data: bytes, wanted: bytes) -> bytes:
    """Return a section of an ELF file; b"" if it has none of that name."""
    (headers,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)

    def place(index: int) -> tuple[int, int, int]:
        name, _, _, _, offset, length = struct.unpack_from("<IIQQQQ", data, headers + index * size)
        return name, offset, length

    _, strings, _ = place(names)
    for index in range(count):
        name, offset, length = place(index)
        if data[strings + name : data.index(b"\0", strings + name)] == wanted:
            return data[offset : offset + length]
    return b""


def _decompressed(path: Path) -> bytes:
    try:
        if path.name.endswith(".xz"):
            decompressor = lzma.LZMADecompressor()
            data = decompressor.decompress(path.read_bytes(), _MAX_MODULE)
            if not decompressor.eof:
                raise GuestError(f"module {path} is cut short, or larger than 64 MiB")
            return data
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                return file.read(_MAX_MODULE)
        if path.name.endswith(".zst"):
            return _unzstd(path)
        return path.read_bytes()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise GuestError(f"module {path}: {error}") from error


def _unzstd(path: Path) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise GuestError(f"module {path} is compressed with zstd: install the package zstd")
    done = subprocess.run([program, "-dcq", str(path)], capture_output=True, check=False)
    if done.returncode:
        raise GuestError(f"module {path}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
