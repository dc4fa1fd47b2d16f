"""From measurements to learning rates."""
