"""CoMMIT in the trainers that people use: one thin file for each."""
