"""The state of a run and the loop that drives it: the only code that mutates anything."""
