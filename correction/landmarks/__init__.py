"""Pairs of points that show the same anatomy in both images, and how far they can be trusted."""

from correction.landmarks.consensus import Consensus, agree, nobody
from correction.landmarks.points import FrameLandmarks, Landmarks

__all__ = ["Consensus", "FrameLandmarks", "Landmarks", "agree", "nobody"]
