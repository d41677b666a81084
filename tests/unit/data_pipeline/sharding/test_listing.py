"""What a listing keeps of each sample: data sets have hundreds of millions of them."""

from __future__ import annotations

import tracemalloc

from data_pipeline.sharding.listing import ListingMaker

_SAMPLES = 5000


def test_a_listing_keeps_columns_and_no_objects_of_each_sample() -> None:
    """Lists of pairs took four times as much: for 300 million samples more than a node has."""
    names = [f"{number:09d}.jpg" for number in range(_SAMPLES)]
    tracemalloc.start()
    try:
        maker = ListingMaker(lambda listed: None, files=["some.tar"])
        for number, name in enumerate(names):
            labels = [(str(number * times % 1000), 0.5) for times in (1, 2, 3)]
            maker.add(name, "some.tar", labels, offset=10_000 * number, size=1000 + number)
        listing = maker.finish(classes=None, multi=True, origin="here", source={})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 250 * _SAMPLES, "1,000 classes among it"
    assert (int(listing.offset[-1]), int(listing.size[-1])) == (10_000 * (_SAMPLES - 1), 1000 + _SAMPLES - 1)
    item = listing.item(_SAMPLES - 1)
    assert [(listing.classes[label], weight) for label, weight in item.label] == [
        ("999", 0.5),
        ("998", 0.5),
        ("997", 0.5),
    ]
