"""One file per run: `get_config()` and, where it makes sense, `sweep()`. Imports nothing of ours."""
