"""Text encoders, which turn prompts into the tokens that a network receives: one per file."""
