"""Experiment configurations: one `get_config()` per file, every key commented in base.py."""
