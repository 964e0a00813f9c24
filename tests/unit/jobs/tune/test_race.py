"""Successive halving on candidates whose losses and speeds are known, and the candidates themselves."""

import pytest

from tandem.config import SamplingConfig
from tandem.errors import InputError
from tandem.metrics import Estimate
from tandem_jobs.tune.candidates import Candidate, default_schedules, grid, runs_of
from tandem_jobs.tune.race import Speed, Standing, able, frontier, halved, race, rounds_of

OWN = SamplingConfig(cfg=3.0, temperatures=(1.1, 1.1, 1.0))
MARGINS = {"frechet": 0.05}


def candidate(n: int) -> Candidate:
    return Candidate(n, OWN)


def at(value: float, half: float = 0.0) -> Estimate:
    return Estimate(value, value - half, value + half)


def standing(n: int, speed_up: float, loss: float, half: float = 0.0) -> Standing:
    speed = Speed(at(10 * speed_up), at(speed_up))
    return Standing(candidate(n), 8, {"frechet": at(loss, half)}, speed)


class KnownTrials:
    """Candidate n has speed n, and loses `losses[n]`; intervals narrow with more images."""

    def __init__(self, losses: dict[int, float]):
        self.of, self.measured = losses, list[tuple[int, int]]()
        self.timed = list[int]()

    def losses(self, candidate: Candidate, images: int) -> dict[str, Estimate]:
        self.measured.append((candidate.draft_steps, images))
        return {"frechet": at(self.of[candidate.draft_steps], 10 / images)}

    def speeds(self, candidates, images, repeats):
        self.timed.append(repeats)
        return [Speed(at(10 * one.draft_steps), at(one.draft_steps)) for one in candidates]


def test_rounds_double_up_to_the_most_images():
    assert rounds_of(320, 2560) == [320, 640, 1280, 2560]
    assert rounds_of(320, 1000) == [320, 640, 1000]
    assert rounds_of(300, 300) == [300]


def test_a_race_ends_with_the_fastest_that_is_as_good_and_measures_half_as_many_each_round():
    losses = {2: 0.01, 3: 0.3, 4: 0.02, 5: 0.4, 6: 0.04, 7: 0.5, 8: 0.9, 9: 0.03}
    trials = KnownTrials(losses)
    found = race([candidate(n) for n in losses], trials, MARGINS, [100, 200, 400], 9)
    by_round = {images: [n for n, seen in trials.measured if seen == images] for images in (100, 200, 400)}
    assert by_round[100] == list(losses) and len(by_round[200]) <= 4 and len(by_round[400]) <= 2
    left = {one.candidate.draft_steps: one.left for one in found}
    assert left[8] == "frechet is worse by more than 0.05" and not left[9]
    assert {one.images for one in found if not one.left} == {400}


def test_a_race_in_which_nobody_is_left_ends():
    trials = KnownTrials({2: 0.9, 3: 0.8})
    found = race([candidate(2), candidate(3)], trials, MARGINS, [100, 200], 9)
    assert all(one.left for one in found) and len(trials.measured) == 2


@pytest.mark.parametrize(("repeats", "timed"), [(9, [2, 4, 8, 9]), (3, [2, 3, 3, 3]), (1, [1, 1, 1, 1])])
def test_the_fewer_are_left_the_more_often_they_are_timed(repeats, timed):
    trials = KnownTrials(dict.fromkeys(range(2, 10), 0.0))
    race([candidate(n) for n in range(2, 10)], trials, MARGINS, [100, 200, 400, 800], repeats)
    assert trials.timed == timed


def test_what_is_worse_beyond_doubt_or_slower_leaves():
    running = [standing(2, 2, 0.0), standing(3, 2, 0.2, 0.2), standing(4, 3, 0.2, 0.1), standing(5, 0.9, -1.0)]
    assert [one.candidate.draft_steps for one in able(running, MARGINS)] == [2, 3]  # 0.2 +- 0.2 may be 0
    assert [one.left for one in running[2:]] == ["frechet is worse by more than 0.05", "not faster than the reference"]


def test_every_measure_has_its_margin():
    one = standing(1, 2, 0.0)
    one.losses = {"frechet": at(0.0), "agreement": at(0.03, 0.01)}
    assert able([one], {"frechet": 0.05, "agreement": 0.01}) == []
    assert one.left == "agreement is worse by more than 0.01"


def test_of_a_frontier_without_room_the_fastest_and_the_best_stay():
    front = [standing(n, n, 0.01 * n) for n in range(2, 8)]
    assert [one.candidate.draft_steps for one in halved(front, 3)] == [7, 5, 2]
    assert [one.left for one in front if one.candidate.draft_steps == 4] == ["others were faster or better"]
    assert [one.candidate.draft_steps for one in halved(front, 1)] == [7]


def test_the_frontier_has_what_none_beats_in_both():
    all_of_them = [standing(1, 1, 0.0), standing(2, 2, 0.1), standing(3, 2, 0.2), standing(4, 1.5, 0.2)]
    assert [one.candidate.draft_steps for one in frontier(all_of_them)] == [2, 1]
    assert frontier([]) == []


def test_a_grid_has_each_way_of_decoding_once():
    """After the last scale that is drafted, "off-after:2" and a refiner without guidance are the same."""
    found = grid(OWN, 4, [2, 3], [3.0], ["linear", "off-after:2"], [None, 0.0], [0.96], [1.0], ["plain", "int8"])
    ways = {(one.draft_steps, one.sampling.guidance, one.precision) for one in found}
    assert len(ways) == len(found) == 2 * (2 + 3)
    assert (2, "cfg 3, refiner 0", "plain") in ways and (2, "cfg 3, off-after:2", "plain") not in ways
    assert {(3, "cfg 3, refiner 0", "int8"), (3, "cfg 3, off-after:2", "int8")} <= ways


def test_temperatures_of_all_scales_are_scaled():
    (one,) = grid(OWN, 3, [2], [3.0], ["linear"], [None], [0.9], [0.5], ["plain"])
    assert one.sampling.temperatures == (0.55, 0.55, 0.5)
    assert one.name == "n2-cfg3-linear-k600-p0.9-t0.55x2-0.5"
    assert runs_of((1.0, 1.0, 0.9, 1.0)) == "1x2-0.9-1"


def test_options_of_a_candidate_are_those_of_a_job():
    one = Candidate(2, SamplingConfig(cfg=3.0, cfg_schedule="off-after:2", refiner_cfg=0.0), "int8")
    options = one.options()
    assert options["int8"] is True and options["refiner_cfg"] == 0.0 and options["cfg_schedule"] == "off-after:2"
    assert one.words == "N = 2, cfg 3, off-after:2, refiner 0, top-p 0.96, temperatures 1.1x7-1, int8"
    numbered = Candidate(2, SamplingConfig(cfg_schedule="0,1,2", refiner_cfg=1.0)).options()
    assert numbered["cfg_schedule"] == "0,1,2" and not {"cfg", "refiner_cfg"} & numbered.keys()


def test_guidance_is_switched_off_in_the_second_half_by_default():
    assert default_schedules("constant", 7) == ("constant", "off-after:4", "off-after:5", "off-after:6")


def test_a_schedule_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="cfg_schedule: expected"):
        grid(OWN, 4, [2], [3.0], ["quadratic"], [None], [0.9], [1.0], ["plain"])
