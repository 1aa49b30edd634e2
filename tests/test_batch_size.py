"""The size of a service's batches on engines whose seconds are known."""

from __future__ import annotations

import pytest

from blackbox.service.batch_size import BatchSize


def sizes_on(seconds_of, n_batches=200, most=64, n_waiting=1000):
    """The sizes of batches on an engine, whose seconds are a function of the texts."""
    size, chosen = BatchSize(most), []
    for _ in range(n_batches):
        chosen.append(size.choose(n_waiting))
        size.record(chosen[-1], seconds_of(chosen[-1]))
    return chosen


@pytest.mark.parametrize("most", [64, 50, 5, 1])
def test_no_batch_is_larger_than_allowed(most):
    assert max(sizes_on(lambda n: 1.0, most=most)) == most


def test_an_engine_that_works_on_one_text_after_the_other_gets_few_at_a_time():
    sizes = sizes_on(lambda n: 0.2 * n + 0.01)
    assert sizes[0] == 8
    assert sorted(set(sizes)) == [8, 16]
    assert sizes.count(16) < 0.05 * len(sizes)


def test_an_api_with_many_connections_gets_all_that_it_answers_at_a_time():
    sizes = sizes_on(lambda n: 1.0)
    assert sizes[:5] == [8, 16, 32, 64, 64]


def test_an_engine_whose_start_costs_as_much_as_some_texts_gets_more_than_those():
    # of a batch of 32 the start is a seventeenth, of 64 a thirty-third: doubling gives 3% more
    sizes = sizes_on(lambda n: 0.1 * n + 0.2)
    assert sizes[-1] == 32


def test_an_engine_that_becomes_slower_for_all_sizes_keeps_its_size():
    size = BatchSize(64)
    for number in range(300):
        n = size.choose(1000)
        size.record(n, (0.2 * n + 0.01) * (5 if number > 100 else 1))
    assert size.choose(10) == 8


def test_no_larger_size_is_tried_than_there_are_texts():
    assert set(sizes_on(lambda n: 1.0, n_waiting=10)) == {8}
