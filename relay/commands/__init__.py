"""The commands of the `relay` program, one file each."""
