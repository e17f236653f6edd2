"""The decoder-only transformer, its configuration, and import from and export to the Hugging Face layout."""
