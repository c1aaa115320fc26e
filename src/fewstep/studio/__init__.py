"""The studio: a page on this machine to try runs by hand. `fewstep studio` starts it."""
