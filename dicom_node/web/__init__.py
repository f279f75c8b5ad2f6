"""What the node shows over HTTP."""
