"""What both trainers share and is not the method: their options, the run itself, its saved state and its log."""
