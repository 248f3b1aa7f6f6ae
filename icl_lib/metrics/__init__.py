"""What a model can do: answers, generated tokens, token losses."""
