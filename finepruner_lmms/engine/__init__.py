"""Pruning a transformers model: encoding images, dropping tokens in the decoder, generating, and what it cost.

The only room that knows how transformers is built inside.
"""
