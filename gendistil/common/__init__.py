"""What every room of the house shares: errors, command-line types, random streams, precision and run folders."""
