"""The frozen vision-language teacher: writes yes/no questions, grades videos, gives the frames gradients."""

from ttopt.teacher.packing import PackedOutput
from ttopt.teacher.prompts import Prompts
from ttopt.teacher.queries import Queries
from ttopt.teacher.teacher import Teacher
from ttopt.teacher.vision import Vision

__all__ = ["PackedOutput", "Prompts", "Queries", "Teacher", "Vision"]
