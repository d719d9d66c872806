"""Several cameras to one panorama."""
