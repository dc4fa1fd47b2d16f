"""What a frozen tower makes of its inputs, computed once and kept on the disk."""
