"""How results are told to people."""

from raysegclean.render import alike


def test_many_errors_that_differ_in_names_and_numbers_alone_are_one_line() -> None:
    errors = {f"c{n}": f"images/c{n}.nii holds {n} of 9 voxels. Mend it." for n in range(5)}
    errors["odd"] = "is odd"
    first = f"5 cases alike (c0, c1, c2 and 2 more), the first: {errors['c0']}"
    assert alike(errors) == [first, "case odd: is odd"]


def test_up_to_three_are_told_one_by_one() -> None:
    errors = {f"c{n}": "is odd" for n in range(3)}
    assert alike(errors) == ["case c0: is odd", "case c1: is odd", "case c2: is odd"]
