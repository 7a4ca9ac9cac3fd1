"""Curricula of three stages, and a walk into the second, for the tests of this folder."""

import prw


def stage(name, **changes):
    return prw.Stage(name, **{"rho": 0.8, "alpha": 0.5, "steps": 10, "lr": 1e-4, **changes})


def curriculum(**changes):
    """Three stages; changes are of the second."""
    return prw.Curriculum([stage(name, **(changes if name == "grounding" else {})) for name in NAMES])


def halfway(weave, course, done=4):
    """Walk into the second stage and stop there."""
    for current in course.stages(weave):
        if current.name == "grounding":
            course.advance(weave, done)
            break


NAMES = ("inpainting", "grounding", "control")
