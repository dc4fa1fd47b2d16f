"""Rival methods that promise a rate without a sweep."""
