"""A model proves on loading that its passes are those of transformers."""
