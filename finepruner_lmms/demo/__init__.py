"""The embedded model and its world: rendered scenes over photographs, questions about them, and a trained LLaVA."""
