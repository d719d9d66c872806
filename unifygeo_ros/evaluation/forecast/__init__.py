"""Where along a route the localizer will give fixes, from the index alone."""
