"""Fuzzing: hostile input that must neither fail a run nor lose a row."""
