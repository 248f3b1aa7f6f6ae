"""What only checks need: the stand-in hub, kills of whole sweeps, repeated sweeps."""
