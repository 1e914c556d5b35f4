"""Reading checkpoints: Hugging Face and original LLaVA folders, tokenizers, prompts and images as evaluated."""
