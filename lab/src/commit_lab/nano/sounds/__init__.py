"""Nano datasets of sounds, played from a soundfont."""
