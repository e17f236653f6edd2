"""Problems, prompts, tokenizers and the resumable question iterator."""
