"""Tasks, prompts and documents."""
