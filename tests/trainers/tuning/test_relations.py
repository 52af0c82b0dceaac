"""What the text of a question must tell: ways between its objects, sides, and options that are right."""

import math

import numpy as np
import pytest
import torch
from tiny_spa3_vlm import tiny_processor

from spa3r.trainers.tuning.relations import MAX_NAMES, Mention, OptionFinder, gathered, questions_of, relations

BED, SOFA, LAMP = [1.0, 0.2, 2.0], [1.0, -0.3, 5.0], [4.0, 0.0, 3.0]


def told(*mentions, question=0):
    """What each mention tells, by the number of the mention."""
    return dict(relations([Mention(index, question, *mention) for index, mention in enumerate(mentions)]))


def test_a_name_tells_the_way_to_its_object_from_each_object_named_before():
    lamp = told(("bed", BED), ("sofa", SOFA), ("lamp", LAMP))[2]
    assert lamp[:6] == pytest.approx([3.0, -0.2, 1.0, 3.0, 0.3, -2.0])
    assert all(map(math.isnan, lamp[6:-2]))


def test_a_third_name_tells_how_far_right_and_ahead_its_object_lies_from_the_first_facing_the_second():
    rng = np.random.default_rng(0)
    bed, sofa, lamp = rng.normal(size=(3, 3))
    right, ahead = told(("bed", bed), ("sofa", sofa), ("lamp", lamp))[2][-2:]
    # Turn the floor, x to the right and z ahead, so that the way from the bed to the sofa points ahead.
    to_sofa, to_lamp = (complex(*(place - bed)[[2, 0]]) for place in (sofa, lamp))
    seen = to_lamp * to_sofa.conjugate() / abs(to_sofa)
    assert (ahead, right) == pytest.approx((seen.real, seen.imag))


def test_a_name_that_comes_again_tells_the_ways_from_all_others_named_so_far():
    again = told(("bed", BED), ("sofa", SOFA), ("bed", BED))[2]
    assert all(map(math.isnan, again[:3]))
    assert again[3:6] == pytest.approx([0.0, 0.5, -3.0])


def test_the_first_name_of_each_question_tells_nothing():
    mentions = [Mention(3, 0, "bed", BED), Mention(5, 0, "sofa", SOFA), Mention(8, 1, "sofa", SOFA)]
    assert [column for column, _ in relations(mentions)] == [5]


@pytest.mark.parametrize("unknown", [0, 1])
def test_an_object_whose_place_is_unknown_is_told_by_no_number(unknown):
    mentions = [("bed", BED), ("sofa", SOFA), ("lamp", LAMP)]
    mentions[unknown] = (mentions[unknown][0], None)
    lamp = told(*mentions)[2]
    assert all(map(math.isnan, [*lamp[3 * unknown : 3 * unknown + 3], *lamp[-2:]]))
    assert not any(map(math.isnan, lamp[3 * (1 - unknown) : 3 * (1 - unknown) + 3]))


def test_two_objects_at_one_spot_of_the_floor_give_nobody_a_direction_to_face():
    above = [BED[0], BED[1] - 1, BED[2]]
    assert all(map(math.isnan, told(("bed", BED), ("picture", above), ("lamp", LAMP))[2][-2:]))


def test_more_objects_than_there_are_numbers_for_are_left_out():
    mentions = [(f"object {index}", [float(index), 0.0, 0.0]) for index in range(MAX_NAMES + 2)]
    assert told(*mentions)[MAX_NAMES + 1][:-2:3] == pytest.approx(
        [MAX_NAMES + 1.0 - index for index in range(MAX_NAMES)]
    )


def test_the_token_before_an_answer_tells_all_places_and_how_the_last_object_lies():
    mentions = [Mention(0, 0, "bed", BED), Mention(1, 0, "sofa", SOFA), Mention(2, 0, "lamp", LAMP)]
    ((question, values),) = gathered([*mentions, Mention(3, 0, "bed", BED)])
    lamp = dict(relations(mentions))[2]
    expected = [*BED, *SOFA, *LAMP] + [math.nan] * 3 * (MAX_NAMES - 3) + lamp
    assert question == 0 and values == pytest.approx(expected, nan_ok=True)


def test_the_token_before_an_answer_about_one_object_tells_its_place_alone():
    ((_, values),) = gathered([Mention(0, 0, "bed", BED)])
    assert values == pytest.approx([*BED] + [math.nan] * (len(values) - 3), nan_ok=True)


def test_tokens_belong_to_the_question_that_they_precede():
    assert questions_of([False, False, True, True, False, True, False]) == [0, 0, -1, -1, 1, -1, 2]


def find_options(*parts):
    """The texts of options that are found in questions and answers, one after the other, and which are right."""
    tokenizer = tiny_processor().tokenizer
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    is_answer = [index % 2 == 1 for index, part in enumerate(ids) for _ in part]
    tokens = torch.tensor(sum(ids, []))
    found = OptionFinder(tokenizer)(tokens, is_answer)
    return [(tokenizer.decode(tokens[: column + 1]).rsplit(". ", 1)[1], right) for column, right in found]


@pytest.mark.parametrize("answer", ["B", "B.", "B. right", "B\n"])
def test_options_are_found_where_they_end_and_the_answer_tells_which_is_right(answer):
    question = "Where is it?\nOptions:\nA. left\nB. right\nAnswer with a letter."
    assert find_options(question, answer) == [("left", False), ("right", True)]


def test_each_question_has_options_of_its_own():
    parts = ("First?\nA. yes\nB. no\n", "A", "Second?\nA. no\nB. yes\n", "B")
    assert [right for _, right in find_options(*parts)] == [True, False, False, True]


@pytest.mark.parametrize("answer", ["Bed", "2.5", "left"])
def test_a_question_that_no_letter_answers_has_no_options(answer):
    assert find_options("Where?\nA. left\nB. right\n", answer) == []
