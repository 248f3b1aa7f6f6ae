"""The two scores of every head."""
