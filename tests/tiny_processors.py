"""The processors of `finepruner_lmms.testing.tiny_checkpoints`, under the name that tests know."""

from finepruner_lmms.testing.tiny_checkpoints import tiny_processor, tokenizer

__all__ = ["tiny_processor", "tokenizer"]
