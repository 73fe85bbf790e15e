"""The fault suite: what a hidden test set and a bad machine can do, done to the real kernel (`make faults`)."""
