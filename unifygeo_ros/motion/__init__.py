"""Motion of the vehicle: samples, buffers, increments."""
