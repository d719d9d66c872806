"""Recorded drives as a data set: pairs for training, sets for judging, and what is wrong with them."""
