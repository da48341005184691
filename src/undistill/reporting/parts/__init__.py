"""Kinds of parts that a document can have: one file each."""
