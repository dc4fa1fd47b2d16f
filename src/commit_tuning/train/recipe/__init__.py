"""Recipes: YAML text to typed settings."""
