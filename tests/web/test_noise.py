"""The noise of noise.js is that of NumPy, bit for bit."""

import json

import numpy as np

from fewstep.noise import RowNoise
from javascript import run_module

PROGRAM = """
import { readFileSync, writeSync } from 'node:fs';
import { standardNormal } from 'WEB/noise.js';
const { keys, length } = JSON.parse(readFileSync(0, 'utf8'));
for (const [seed, row, draw] of keys) {
  writeSync(1, new Uint8Array(standardNormal(seed, row, draw, length).buffer));
}
"""


def javascript_noise(keys, length):
    stdin = json.dumps({"keys": keys, "length": length}).encode()
    numbers = np.frombuffer(run_module(PROGRAM, stdin=stdin), np.uint32)
    return numbers.reshape(len(keys), length)


def numpy_noise(keys, length):
    rows = [RowNoise([(seed << 32) + row]).draw(draw, (length,)) for seed, row, draw in keys]
    return np.concatenate([row.numpy() for row in rows])


def test_a_million_numbers_are_those_of_numpy():
    chance = np.random.default_rng(0)
    keys = [[0, 0, 0], [0, 0, 1], [(1 << 30) - 1, (1 << 32) - 1, 5], [1, 1 << 31, 4_000_000_000]]
    keys += chance.integers(0, (1 << 30, 1 << 32, 1000), (196, 3)).tolist()
    expected = numpy_noise(keys, 5100)
    assert (np.abs(expected) > 3.6541529).sum() > 200, "too few numbers from the tail"
    assert np.array_equal(javascript_noise(keys, 5100), expected.view(np.uint32))


def test_a_longer_draw_begins_with_the_shorter_one():
    keys = [[3, 14, 0]]
    short, long = (javascript_noise(keys, length) for length in (3, 1001))
    assert np.array_equal(short, long[:, :3])
