"""Pairs of points that show the same anatomy in both images, and how far they can be trusted."""

from correction.landmarks.consensus import Consensus, agree, nobody
from correction.landmarks.find import Slicing, find_landmarks
from correction.landmarks.points import FrameLandmarks, Landmarks
from correction.landmarks.weights import WeightsError

__all__ = [
    "Consensus",
    "FrameLandmarks",
    "Landmarks",
    "Slicing",
    "WeightsError",
    "agree",
    "find_landmarks",
    "nobody",
]
