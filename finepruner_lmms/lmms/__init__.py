"""The lmms-eval model `llava_finepruner`: its arguments, its answers, its caches and what they depend on."""
