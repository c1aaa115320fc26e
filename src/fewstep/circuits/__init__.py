"""Denoising circuits: recurrent networks that step a hidden state from noise to an image.

A circuit's *ring* is its own sampler: encode the noise into a state once, apply the update N times,
read the image from the last state.  docs/circuits.md

- `network` is the circuit, and `one_step` a network that predicts its last state in one pass.
- `view` calls a circuit's parts in terms of times; it also defines the ring.
- `rings` records states of rings; `sample_files` reads and writes the original code's records.
"""
