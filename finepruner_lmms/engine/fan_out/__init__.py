"""Several methods on one batch of prompts, for the price of what they do not have in common.

The vision tower and all decoder layers before the first drop give the same for every method, budget, head count and
strategy. `answer_together` runs them once, lets each method choose, and goes on with one row per question and choice:
methods that kept the same tokens share a row to its last answer token.
"""

from finepruner_lmms.engine.fan_out.greedy import why_apart
from finepruner_lmms.engine.fan_out.together import Together, answer_together

__all__ = ["Together", "answer_together", "why_apart"]
