"""Modules that starve, steps that go wrong, and what of a model trains."""
