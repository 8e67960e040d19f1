"""What the study scripts share, a file for each thing."""
