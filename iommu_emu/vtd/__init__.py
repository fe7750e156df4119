"""Intel VT-d: the unit, its memory structures, faults, presets and a small software driver."""
