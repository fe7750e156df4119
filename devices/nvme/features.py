"""Features: what Set Features changes, and what each may be set to (5.21.1)."""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.devices.nvme.specification import CommandError, Feature, StatusCode

CHANGEABLE = 1 << 2  # of the capabilities that SEL=3 asks for (5.14)
WARNING_TEMPERATURE = 343  # kelvins
CRITICAL_TEMPERATURE = 373
_UNDER = 1 << 20  # THSEL of the temperature threshold, which lies above TMPTH and TMPSEL
_ALL_SENSORS = 0xF
_DISABLE_COALESCING = 1 << 16
_MASKS = {
    Feature.ARBITRATION: 0xFFFF_FF07,
    Feature.POWER_MANAGEMENT: 0x0000_00FF,
    Feature.ERROR_RECOVERY: 0x0001_FFFF,
    Feature.VOLATILE_WRITE_CACHE: 1,
    Feature.INTERRUPT_COALESCING: 0xFFFF,
    Feature.WRITE_ATOMICITY: 1,
    Feature.ASYNC_EVENTS: 0x0000_00FF,
    Feature.KEEP_ALIVE_TIMER: 0xFFFF_FFFF,
}

__all__ = ["CHANGEABLE", "CRITICAL_TEMPERATURE", "WARNING_TEMPERATURE", "Features"]


class Features:
    """Values of the features; nothing is saved over a reset.

    Args:
        queues: I/O queues of each kind that there are.
        vectors: interrupt vectors that there are.
    """

    def __init__(self, queues: int, vectors: int) -> None:
        self._most_queues = queues
        self._vectors = vectors
        self.queues = queues  # that software may create, of each kind
        self._values = self._defaults()
        self._coalescing_disabled: set[int] = set()

    def _defaults(self) -> dict[tuple[Feature, int], int]:
        values = {(feature, 0): 0 for feature in Feature}
        values[Feature.ARBITRATION, 0] = 7  # a burst without limit
        values[Feature.TEMPERATURE_THRESHOLD, 0] = WARNING_TEMPERATURE
        values[Feature.TEMPERATURE_THRESHOLD, _UNDER] = 0
        values[Feature.VOLATILE_WRITE_CACHE, 0] = 1
        values[Feature.NUMBER_OF_QUEUES, 0] = (self._most_queues - 1) * 0x10001
        return values

    def value(self, feature: Feature) -> int:
        """Return the value of a feature without selector."""
        return self._values[feature, 0]

    @property
    def temperature_thresholds(self) -> tuple[int, int]:
        """Over and under threshold of the composite temperature in kelvins."""
        feature = Feature.TEMPERATURE_THRESHOLD
        return self._values[feature, 0], self._values[feature, _UNDER]

    def get(self, feature: Feature, select: int, cdw11: int) -> int:
        """Return what Get Features puts into dword 0 (5.9).

        Args:
            feature: which.
            select: 0 current, 1 default, 2 saved (here the default), 3 capabilities.
            cdw11: dword 11: what the feature's value belongs to.

        Raises:
            CommandError: Invalid Field in Command.
        """
        if select > 3:
            raise CommandError(StatusCode.INVALID_FIELD)
        if select == 3:
            return CHANGEABLE
        if feature is Feature.INTERRUPT_VECTOR:
            vector = self._check_vector(cdw11)
            disabled = select == 0 and vector in self._coalescing_disabled
            return vector | (_DISABLE_COALESCING if disabled else 0)
        selector = self._selector(feature, cdw11)
        values = self._values if select == 0 else self._defaults()
        return values[feature, selector]

    def set(self, feature: Feature, value: int, *, queues_exist: bool) -> int:
        """Change a feature; return what Set Features puts into dword 0.

        Args:
            feature: which.
            value: dword 11.
            queues_exist: whether there are I/O queues, so that their number is settled.

        Raises:
            CommandError: Invalid Field in Command, or Command Sequence Error.
        """
        if feature is Feature.NUMBER_OF_QUEUES:
            return self._set_queues(value, queues_exist)
        if feature is Feature.INTERRUPT_VECTOR:
            vector = self._check_vector(value)
            change: Callable[[int], None] = self._coalescing_disabled.discard
            if value & _DISABLE_COALESCING:
                change = self._coalescing_disabled.add
            change(vector)
        elif feature is Feature.TEMPERATURE_THRESHOLD:
            self._values[feature, self._selector(feature, value)] = value & 0xFFFF
        elif feature is Feature.POWER_MANAGEMENT and value & 0x1F:  # there is power state 0 alone
            raise CommandError(StatusCode.INVALID_FIELD)
        else:
            self._values[feature, 0] = value & _MASKS[feature]
        return 0

    def _selector(self, feature: Feature, value: int) -> int:
        """Return what a temperature threshold belongs to; other features have one value."""
        if feature is not Feature.TEMPERATURE_THRESHOLD:
            return 0
        sensor, kind = value >> 16 & 0xF, value >> 20 & 3
        # There is the composite temperature alone, which "all" includes.
        if sensor not in (0, _ALL_SENSORS) or kind > 1:
            raise CommandError(StatusCode.INVALID_FIELD)
        return _UNDER if kind else 0

    def _check_vector(self, value: int) -> int:
        vector = value & 0xFFFF
        if vector >= self._vectors:
            raise CommandError(StatusCode.INVALID_FIELD)
        return vector

    def _set_queues(self, value: int, queues_exist: bool) -> int:
        if queues_exist:
            raise CommandError(StatusCode.COMMAND_SEQUENCE_ERROR)
        submission, completion = value & 0xFFFF, value >> 16
        if 0xFFFF in (submission, completion):
            raise CommandError(StatusCode.INVALID_FIELD)
        # As many of both kinds as were asked for of either: there is no use in the difference.
        self.queues = min(max(submission, completion) + 1, self._most_queues)
        result = (self.queues - 1) * 0x10001
        self._values[Feature.NUMBER_OF_QUEUES, 0] = result
        return result
