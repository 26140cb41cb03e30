"""The captioned video of ``granalign demo``: a written timeline of 75 clips, and rewrites."""
