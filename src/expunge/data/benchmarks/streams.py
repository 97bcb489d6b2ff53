"""Streams of requests that recipes may name: what goes one after another, and what stays through all of it."""

from __future__ import annotations

from expunge.data.benchmarks import Benchmark, capitals_stream, people, people_stream, scienceqa
from expunge.stream import Stream

STREAMS: dict[str, Benchmark[Stream]] = {
    "people_in_requests": Benchmark(
        name="people_in_requests",
        summary="Ten requests of six fictional people each, with a gold control for every prefix.",
        source="generated (Apache-2.0)",
        build=people_stream.build,
        train=people.train_tiny,
    ),
    "world_facts_by_region": Benchmark(
        name="world_facts_by_region",
        summary="Five requests: the capitals of Africa, Asia, Europe, the Americas and Oceania.",
        source="as world_facts",
        build=capitals_stream.by_region,
    ),
    "world_facts_in_requests": Benchmark(
        name="world_facts_in_requests",
        summary="Ten requests about the capitals of four countries each.",
        source="as world_facts",
        build=capitals_stream.in_requests,
    ),
    "scienceqa": Benchmark(
        name="scienceqa",
        summary="Four requests: biology, physics, chemistry and earth science of ScienceQA.",
        source="ScienceQA (CC BY-NC-SA 4.0), from the folder `data.folder`",
        build=scienceqa.build,
        lessons=scienceqa.lessons,
        teaching_rate=5e-5,  # at four times that the other topics and plain text suffer
        from_folder=True,
    ),
}
"""Registry by name."""
