"""Telling an owner's own servers what became of a job, as the Standard Webhooks specification has it."""
