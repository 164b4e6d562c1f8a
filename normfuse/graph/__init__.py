"""Reading and changing graphs: what is constant, which axis is which, and the one place that mutates."""
