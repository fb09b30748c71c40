"""Worker processes and how a coordinator talks to them; both engines stand on this."""
