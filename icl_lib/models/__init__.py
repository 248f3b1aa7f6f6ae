"""Which models there are and how one is loaded."""
