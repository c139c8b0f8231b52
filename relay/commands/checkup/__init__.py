"""What `relay doctor` looks at: the folder and its disk, the key files, the way to upstream; no event is sent."""
