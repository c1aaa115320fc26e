import pytest
import torch

from fewstep.batching import Batches, ImageStream
from fewstep.errors import InputError
from fewstep.sample_spec import SampleSpec


def make(n=10, batch=4, seed=0, **stream):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2)
    return Batches(
        {"images": ImageStream(images, torch.arange(n), **stream)},
        SampleSpec((1, 2, 2), n),
        batch=batch,
        seed=seed,
    )


def labels(batches, step, micro=0):
    return [int(i) for b in batches.step(step, micro) for i in b.images.cond.label]


def test_each_epoch_is_a_fresh_permutation():
    batches = make(n=12, batch=4)
    epochs = [sum((labels(batches, 3 * e + i) for i in range(3)), []) for e in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_may_run_over_the_end_of_epochs():
    batches = make(n=3, batch=8)
    seen = sum((labels(batches, step) for step in range(3)), [])
    assert all(sorted(seen[i : i + 3]) == [0, 1, 2] for i in range(0, 24, 3))


def test_rows_are_a_function_of_seed_and_step():
    assert labels(make(), 7) == labels(make(), 7)
    assert labels(make(seed=1), 7) != labels(make(seed=2), 7)


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_micro_batches_see_the_numbers_of_one_batch(micro):
    def draws(micro):
        parts = []
        for b in make(n=50, batch=10, flip=True).step(3, micro):
            b.begin("student", 0)
            x0 = b.images.x0
            parts.append(
                (x0, b.rand(), b.randn_like(x0), b.noise(), b.cond().label, b.images.cond.label)
            )
            shared.add(b.shared_rand())
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    shared = set()
    for one, many in zip(draws(0), draws(micro), strict=True):
        assert torch.equal(one, many)
    assert len(shared) == 1 and 0 <= shared.pop() < 1


def test_draws_differ_between_turns_occurrences_steps_and_calls():
    seen = set()
    for step in (0, 1):
        batch = make().step(step)[0]
        for player in ("student", "fake"):
            for occurrence in (0, 1):
                batch.begin(player, occurrence)
                seen |= {tuple(batch.rand().tolist()) for _ in range(2)}
    assert len(seen) == 16
    batch.begin("student", 0)
    first = batch.rand()
    batch.begin("student", 0)
    assert torch.equal(batch.rand(), first)


def test_uint8_becomes_minus_one_to_one_and_points_stay():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    rows = ImageStream(images, None).rows(torch.tensor([0, 1]), torch.zeros(2), torch.device("cpu"))
    assert rows.x0.flatten().tolist() == [-1, 1] and rows.cond is None
    points = torch.tensor([[3.0, -4.0]])
    rows = ImageStream(points, None).rows(torch.tensor([0]), torch.zeros(1), torch.device("cpu"))
    assert torch.equal(rows.x0, points)


def test_flip_mirrors_left_to_right_where_the_coin_says():
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(2, 1, 1, 2)
    stream = ImageStream(images, None, flip=True)
    rows = stream.rows(torch.tensor([0, 1]), torch.tensor([0.4, 0.6]), torch.device("cpu"))
    assert rows.x0[:, 0, 0].tolist() == [[1, -1], [-1, 1]]


def test_the_next_steps_are_read_meanwhile_and_once():
    batches, asked = make(), []
    stream = batches.streams["images"]
    rows = stream.rows

    def counted(index, coin, device):
        asked.append(index.tolist())
        assert torch.get_num_threads() == 1  # a team of threads would fight the training's
        return rows(index, coin, device)

    stream.rows = counted
    seen = [labels(batches, step) for step in range(5)]
    assert seen == [labels(make(), step) for step in range(5)]
    batches._readers.shutdown()
    assert len(asked) == 5 + batches.AHEAD
    assert all(step in asked for step in seen)


def test_going_back_gives_the_same_rows_again():
    batches = make()
    forward = [labels(batches, step) for step in (0, 1, 2, 3)]
    assert [labels(batches, step) for step in (2, 0, 3, 1)] == [forward[i] for i in (2, 0, 3, 1)]


def test_what_goes_wrong_while_reading_reaches_the_training():
    batches = make()

    def broken(index, coin, device):
        raise InputError("damaged")

    batches.streams["images"].rows = broken
    with pytest.raises(InputError, match="damaged"):
        batches.step(0)
