"""What is the paper's alone: the drift regulariser (Eq. 9-10) and coordinate descent."""
