"""Procedural towns: training and demonstration data that ships with the project because it is made by it."""
