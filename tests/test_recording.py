import pytest
import torch

from analytic import exact
from fewstep import store
from fewstep.errors import InputError
from fewstep.generator import Generator, Subject
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.recording import FIRST_SEED, PairStream, Recording, class_labels, record
from fewstep.sampling import ancestral, heun, noise_from_seeds
from fewstep.times import KarrasGrid

IMAGES = (1, 4, 4)


def images(**settings):
    model = exact(VE(80.0), EDM(), shape=IMAGES)
    settings = {"grid": KarrasGrid(), "step": heun, **settings}
    return Generator(model, Subject(IMAGES, 3), **settings)


def recorded(generator, folder, *, teacher="hash", batch=None, **settings):
    told = Recording(**{"count": 23, "steps": 5, "shard": 10, **settings})
    return [now.done for now in record(generator, folder, told, teacher=teacher, batch=batch)]


def test_pairs_are_the_teachers_answers_to_their_noise(tmp_path):
    assert recorded(images(), tmp_path / "p", batch=4)[-1] == 23
    reader = store.Reader(tmp_path / "p")
    stream = PairStream(reader)
    assert len(stream) == 23 and reader.provenance["teacher"] == "hash"
    index = torch.tensor([22, 0, 7])
    rows = stream.rows(index, torch.zeros(3), torch.device("cpu"))
    seeds = [FIRST_SEED + int(i) for i in index]
    assert torch.equal(rows.noise, noise_from_seeds(seeds, IMAGES))
    assert rows.cond.label.tolist() == [22 % 3, 0, 7 % 3]
    wanted = images()(rows.noise, steps=5, cond=rows.cond)
    torch.testing.assert_close(rows.x0, wanted.clamp(-1, 1), atol=0.5 / 127.5 + 1e-6, rtol=0)


def test_points_are_kept_exactly(tmp_path):
    plane = Generator(exact(Flow(), Velocity()), Subject((2,)), step=heun)
    recorded(plane, tmp_path / "p")
    rows = PairStream(store.Reader(tmp_path / "p")).rows(
        torch.arange(23), torch.zeros(23), torch.device("cpu")
    )
    assert rows.cond is None
    torch.testing.assert_close(rows.x0, plane(rows.noise, steps=5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_store_does_not_depend_on_the_batch_size(tmp_path, batch):
    recorded(images(), tmp_path / "a", batch=23)
    recorded(images(), tmp_path / "b", batch=batch)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_an_interrupted_recording_goes_on_and_ends_the_same(tmp_path):
    recorded(images(), tmp_path / "whole", batch=5)
    rows = record(images(), tmp_path / "p", Recording(23, 5, shard=10), teacher="hash", batch=5)
    for now in rows:
        if now.done >= 15:
            break
    rows.close()
    assert recorded(images(), tmp_path / "p", batch=5)[0] == 10  # the first shard was whole
    assert content(tmp_path / "p") == content(tmp_path / "whole")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stochastic_teacher_is_refused_with_the_reason(tmp_path):
    with pytest.raises(InputError, match="ancestral draws fresh noise.*no function"):
        recorded(images(step=ancestral), tmp_path / "p")
    with pytest.raises(InputError, match="0 pairs"):
        recorded(images(), tmp_path / "p", count=0)
    with pytest.raises(InputError, match="seeds from 0 up"):
        recorded(images(), tmp_path / "p", seed=-1)


def test_another_teachers_pairs_are_not_mixed_in(tmp_path):
    recorded(images(), tmp_path / "p")
    with pytest.raises(InputError, match="teacher"):
        recorded(images(), tmp_path / "p", teacher="other")


def test_labels_come_in_turn():
    assert class_labels(3, range(2, 7)).label.tolist() == [2, 0, 1, 2, 0]
    assert class_labels(3, range(1, 4), labels=[2, 0]).label.tolist() == [0, 2, 0]
    assert class_labels(0, range(3)) is None
