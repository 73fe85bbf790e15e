"""Fault suite: run the real kernel on damaged clips and on a machine with faults (`make faults`)."""
