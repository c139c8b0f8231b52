"""What `relay queue` and `relay dlq` are made of: looking, exporting, verifying, mending, changing."""
