"""Images and sensor samples of one drive to fixes."""
