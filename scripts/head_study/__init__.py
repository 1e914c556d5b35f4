"""The head study: which attention heads guide pruning well; see docs/head_study.md."""
