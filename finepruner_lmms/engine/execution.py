"""How `generate` can run, by name. Known without torch, so that a study can be planned without it."""

EXECUTIONS = ("auto", "eager", "graphs")
