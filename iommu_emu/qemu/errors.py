"""What can go wrong between a user and a QEMU that runs."""

from __future__ import annotations


class NotAvailable(LookupError):  # noqa: N818 -- a state of this machine, not a mistake
    """Something that a guest needs is not on this machine; the message says what to run."""


class Unreachable(NotAvailable):
    """The package archive did not answer: no address, no connection, no reply, or a proxy."""


class PackageError(RuntimeError):
    """The archive answered, and what it said is wrong: signature, hash, missing package."""


class QemuError(RuntimeError):
    """The QEMU that ``IOMMU_EMU_QEMU`` names does not run, or is older than we need."""
