"""Numbers and verdicts from tables; no model is loaded."""
