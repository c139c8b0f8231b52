"""The back door: takes chunks from the spool, sends them upstream in batches, settles each by what was answered."""
