"""The numbers of a replay."""
