"""What is ready on this machine, and what is missing: `finepruner doctor`."""
