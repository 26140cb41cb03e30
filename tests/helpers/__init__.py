"""Models, devices, videos and reference computations that tests share."""
