"""Video files: one frame per clip with its true time, and moments cut out of them."""
