"""Files to records, texts to token ids, responses to verdicts."""
