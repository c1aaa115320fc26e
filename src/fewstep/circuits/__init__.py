"""Denoising circuits: recurrent networks that step a hidden state from noise to an image.

`network` holds the circuit and `one_step` the network that predicts its final state at once; `view`
calls a circuit's parts in terms of times; `rings` records its states, and `sample_files` reads and
writes those of the original code.  docs/circuits.md
"""
