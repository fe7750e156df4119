"""Security advisories that a Xen may be run without the fixes of."""

from __future__ import annotations

from enum import Enum

__all__ = ["Advisory"]


class Advisory(Enum):
    """An advisory; `value` tells what is wrong without its fix."""

    XSA_373 = "CVE-2021-28692: a device that does not answer in time counts as if it had"
    XSA_378 = "CVE-2021-28696: unity maps stay with a guest whose device was taken (AMD-Vi)"
    XSA_386 = "CVE-2021-28702: a device with an RMRR is not taken from its guest at all (VT-d)"
    XSA_400 = "CVE-2022-26358: reserved memory is out of reach in quarantine and on the way there"
