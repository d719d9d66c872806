"""`unifygeo watch`: a page in the browser that shows a running node, or plays a finished replay. It only reads."""
