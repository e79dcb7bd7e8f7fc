"""Helpers of the Python tests; nothing here is imported by the package itself."""
