"""Benchmark data and checkpoints on disk: what each benchmark consists of, fetching, checking, and what is missing."""
