"""Measuring how fast methods are on the device at hand, next to what their operation counts promise (`run`)."""
