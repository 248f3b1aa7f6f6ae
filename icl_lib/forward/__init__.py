"""Forward passes of all heads at once, and edits of their outputs."""
