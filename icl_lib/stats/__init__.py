"""Intervals, tests and emergence, from numbers alone."""
