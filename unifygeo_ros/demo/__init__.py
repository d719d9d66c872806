"""The first run, and the parts that play a drive to a node."""
