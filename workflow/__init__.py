"""What runs the notebooks and renders the book: the suite, the templates, the runner, the builder."""
