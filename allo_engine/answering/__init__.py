"""Models that answer somebody who waits: one base in memory, jobs' models over it, several questions in turns."""
