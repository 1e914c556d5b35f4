"""Asking a model: from a conversation with pictures to the inputs of its family, and to an answer."""
