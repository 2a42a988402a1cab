"""What both trainers share and is not the method: options, the run, its saved state, its log."""
