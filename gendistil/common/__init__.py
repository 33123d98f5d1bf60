"""What every room shares: flags, errors, the loop, run folders, random streams, how networks run, the hub, what a source is."""
