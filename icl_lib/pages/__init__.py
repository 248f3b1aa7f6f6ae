"""Sentences and small tables of the book's pages."""
