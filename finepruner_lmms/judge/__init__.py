"""Judging free answers: by a language model behind an OpenAI-compatible endpoint, by string match, or later.

Answers and judgements are separate files. A judgement is stored as it comes, and none is ever made up: what could not
be judged has no score.
"""
