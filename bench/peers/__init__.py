"""The same work done with other software: the competitors in a race."""
