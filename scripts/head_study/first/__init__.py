"""The first study: which heads should guide FastV's drop, on the easy world (docs/head_study_heads.md)."""
