"""Places in the noise, and the address of the page's state."""

import json

import pytest
import torch

from fewstep.studio.starts import Between, parse_start
from javascript import run_module

PROGRAM = """
import { readFileSync } from 'node:fs';
import { neighbours, parseStart, placeNoise, startNoise } from 'WEB/sampling.js';
import { readState, writeState } from 'WEB/state.js';
const values = JSON.parse(readFileSync(0, 'utf8'));
console.log(JSON.stringify(EXPRESSION, (key, value) =>
  ArrayBuffer.isView(value) ? Array.from(value) : value));
"""


def evaluate(expression, values=None):
    program = PROGRAM.replace("EXPRESSION", expression)
    return json.loads(run_module(program, stdin=json.dumps(values).encode()))


def test_places_are_those_of_the_studio():
    starts = ["7", "1073741823", "7~12:0.2", "7~12:0.25~3:1", "5~5:0.5"]
    corners = ["1", "2~9:0.5", "3", "4"]
    places = [(corners[:2], 0.3, 0.0), (corners, 0.25, 0.8)]
    shape = (2, 5, 7)
    noises = evaluate(
        "values.starts.map((text) => startNoise(text, 70)).concat(values.places.map("
        "([corners, x, y]) => placeNoise({ corners, x, y }, 70)))",
        {"starts": starts, "places": places},
    )
    expected = [parse_start(text) for text in starts]
    expected += [Between(tuple(map(parse_start, names)), x, y) for names, x, y in places]
    for values, place in zip(noises, expected, strict=True):
        torch.testing.assert_close(torch.tensor(values).view(1, *shape), place.noise(shape))


def test_neighbours_have_names_of_their_own():
    names = evaluate('[...neighbours("7", 8, 0.2), ...neighbours("7~12:0.2", 8, 0.123456)]')
    assert len(set(names)) == 16 and all(str(parse_start(name)) == name for name in names)
    assert all(name.startswith("7~") and name.endswith(":0.2") for name in names[:8])
    assert all(name.startswith("7~12:0.2~") and name.endswith(":0.123") for name in names[8:])


@pytest.mark.parametrize("text", ["", "-1", "1073741824", "7~", "7~12", "7~12:1.5", "<b>", "1e3"])
def test_text_that_names_no_start(text):
    assert evaluate("parseStart(values)", text) is None


DEFAULTS = {
    "mode": "seeds", "start": "0", "first": 0, "near": 0, "pins": ["0", "1"], "corners": "2",
    "x": 0.5, "y": 0.5, "label": None, "guidance": 1, "shown": ["0:1"], "wipe": [],
    "freedom": 0.5, "drawing": "", "backend": "", "prompt": "a cat", "negative": "",
}  # fmt: skip


def test_an_address_holds_what_differs_from_the_defaults():
    state = {
        **DEFAULTS, "mode": "paint", "start": "7~12:0.2", "pins": ["3~1:0.5", "4"], "label": 2,
        "shown": ["0:1", "1:8"], "wipe": ["0:1", "1:8"], "x": 0.125, "drawing": "AA-_", "near": 0.1,
        "prompt": "50% of a cat & #1? 猫+=_", "negative": "",
    }  # fmt: skip
    values = {"state": state, "defaults": DEFAULTS}
    text = evaluate("writeState(values.state, values.defaults)", values)
    assert text.startswith("mode=paint&start=7~12%3A0.2&near=0.1&pins=")
    assert evaluate("readState(values[0], values[1])", [f"#{text}", DEFAULTS]) == state
    assert evaluate("writeState(values, values)", DEFAULTS) == ""
    broken = {**DEFAULTS, "prompt": "\ud800" + "x" * 1000}
    text = evaluate("writeState(values[0], values[1])", [broken, DEFAULTS])
    assert text == "prompt=%EF%BF%BD" + "x" * 999


def test_malformed_addresses_have_the_defaults():
    text = "#mode=x&start=<b>&first=-3&near=2&label=x&guidance=nan&shown=a_0:4&x=&drawing=*&what=1"
    state = evaluate("readState(values[0], values[1])", [text, DEFAULTS])
    assert state == {**DEFAULTS, "shown": ["0:4"]}
    without = evaluate("readState(values[0], values[1])", ["#wipe=", {**DEFAULTS, "wipe": ["0:1"]}])
    assert without == DEFAULTS
