"""AMD-Vi: the unit, its memory structures, events, presets and a small software driver."""
