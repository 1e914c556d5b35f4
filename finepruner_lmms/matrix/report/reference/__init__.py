"""Published scores of LLaVA-1.5-7B beside ours: `records` holds them, `rules` say what compares with what."""
