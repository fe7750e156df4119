"""What a controller counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass
class Statistics:
    """What happened since the controller was made.

    Attributes:
        rx_frames: received without error.
        rx_bytes: in them.
        rx_no_descriptor: frames dropped since software had given no descriptor.
        rx_missed: frames dropped since the ring was off, or too many waited for it.
        rx_oversize: frames dropped since they were longer than the limit.
        rx_faults: frames dropped since a buffer could not be written.
        tx_frames: sent.
        tx_bytes: in them.
        tx_faults: frames not sent since a buffer could not be read.
        tx_length: frames not sent since they were empty or longer than the limit.
        ring_failures: times that a ring stopped by itself.
        doorbell_errors: doorbell writes that were ignored.
    """

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_no_descriptor: int = 0
    rx_missed: int = 0
    rx_oversize: int = 0
    rx_faults: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_faults: int = 0
    tx_length: int = 0
    ring_failures: int = 0
    doorbell_errors: int = 0
