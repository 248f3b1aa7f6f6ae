"""Which heads are ablated, the grid of measurements, and effects."""
