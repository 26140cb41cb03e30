"""Many videos: their catalogue, the search of all of them, and their upkeep."""
