"""A running system is broken on purpose, in ways that a seed chooses, and its history is checked by rules.

trainer    stands for the engine: real checkpoints, no model
system     the parts: database, broker, API, two workers
faults     what is done to them
visitor    a client that submits, cancels, pauses and downloads
history    what everybody did and saw, a JSON line each
checker    what must hold of any history
trials     one after the other
"""
