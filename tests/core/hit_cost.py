"""Counts instructions: what is switched off must not cost a hit anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from core_bench import Bench

ROOT = Path(__file__).parents[2]


def build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compile iotlb_hits.c with the core, and return the program."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # a sanitizer's, not this program's
    source, program = Path(__file__).with_name("iotlb_hits.c"), folder / "hits"
    config = Bench(fault_offset=0x220, iotlb_offset=0xF0).config
    words = [f"-DUNIT_{name.upper()}={config[name]:#x}ull" for name in ("cap", "ecap")]
    folders = [ROOT / "csrc", ROOT / "csrc" / "vtd", ROOT / "csrc" / "amdvi"]
    files = [str(path) for folder in folders for path in folder.glob("*.c")]
    command = ["cc", "-std=gnu11", "-O2", *words, f"-I{ROOT / 'csrc'}", str(source), *files]
    built = subprocess.run([*command, "-pthread", "-o", program], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def instructions(program: Path, *arguments: str) -> int:
    """Return the instructions that 100 hits take, counted by single-stepping."""
    return int(subprocess.run([program, *arguments], check=True, capture_output=True).stdout)
