"""Record a generator's samples into a store: pairs of noise, stored as its seed, and image.

The noise of row i is drawn from seed `FIRST_SEED + seed·2³² + i`, so that a record needs only the
image, its label, the number of its prompt and that seed. No other code uses these seeds: a student
is never scored on noise that it was trained on. The store's bytes depend neither on batch sizes nor
on interruptions or the number of processes.
"""

from fewstep.recording.settings import Recording
from fewstep.recording.shards import Progress, record
from fewstep.recording.tiles import FIRST_SEED, Tiles

__all__ = ["FIRST_SEED", "Progress", "Recording", "Tiles", "record"]
