"""INT8 graphs, made of a bundle's fp32 graphs and of data."""
