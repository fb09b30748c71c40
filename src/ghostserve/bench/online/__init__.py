"""`ghostserve bench online`: an open-loop client against the engine under failures, every strategy side by side."""
