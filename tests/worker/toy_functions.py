"""Functions that the toy worker knows by their names."""


def shell_one():
    raise AssertionError("the toy worker returns 1")


def shell_two():
    raise AssertionError("the toy worker returns 2")


def shell_total(*numbers):
    raise AssertionError("the toy worker returns their sum")


def shell_raise():
    raise AssertionError("the toy worker raises ValueError")


def shell_hold():
    raise AssertionError("the toy worker never returns")
