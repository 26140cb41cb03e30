"""Read video files: one frame per clip with its presentation time; cut moments out of them."""
