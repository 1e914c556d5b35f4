"""Benchmark data: fetched from the hub, checked, and offered to lmms-eval as folders of tasks."""
