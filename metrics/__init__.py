"""What evaluate.py measures: the kinds of input, the distances between sets of pictures, and the measures of each face."""
