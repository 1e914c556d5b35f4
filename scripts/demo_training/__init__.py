"""Training of the embedded demo model; see `scripts/train_demo.py`."""
