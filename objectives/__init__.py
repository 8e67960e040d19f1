"""What can be measured on a model, in which unit."""
