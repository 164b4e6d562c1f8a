"""The steps of the pipeline: each decides on a whole graph first, and changes it through graph/editing.py alone."""
